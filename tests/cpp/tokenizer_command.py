"""The C++ tokenizer's command, built, and questions to it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "eecompile" / "runtime" / "cpp" / "tokenizer"
HEADERS = ROOT / "build" / "deps"


def build(sanitized: bool) -> Path:
    """The command, compiled where it is older than its sources; skips where what that takes is missing."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the C++ tokenizer stays uncompiled here")
    if not (HEADERS / "include" / "nlohmann" / "json.hpp").exists():
        pytest.skip("build/deps has no nlohmann/json.hpp: run make cpp-deps")
    kind = "sanitized" if sanitized else "release"
    folder = ROOT / "build" / f"test-tokenizer-{kind}-{hashlib.sha256(str(SOURCES).encode()).hexdigest()[:8]}"
    options = ["-DEECOMPILE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"] if sanitized else []
    run(
        "cmake",
        "-S",
        SOURCES,
        "-B",
        folder,
        f"-DCMAKE_PREFIX_PATH={HEADERS}",
        "-DEECOMPILE_WERROR=ON",
        "-DCMAKE_UNITY_BUILD=ON",
        "-DCMAKE_UNITY_BUILD_BATCH_SIZE=10",
        *options,
    )
    run("cmake", "--build", folder, "--parallel", "2")
    return folder / "eecompile-tokenize"


def run(*command: object) -> None:
    """A command that has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Command:
    """Asks eecompile-tokenize."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def ask(self, file: Path, verb: str, lines: Sequence[Any]) -> list[Any]:
        """The answer to each JSON value, in order; the command has to succeed."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        done = subprocess.run([self._program, file, verb], input=text, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.split("\n")[:-1]]

    def encode(self, file: Path, texts: Sequence[bytes], special: bool = True) -> list[list[int]]:
        """The ids of texts of any bytes."""
        return self.ask(file, "encode" if special else "encode-plain", [{"bytes": text.hex()} for text in texts])

    def opens(self, file: Path) -> tuple[int, str]:
        """Exit status and message of opening a file, which may take 60 s."""
        done = subprocess.run(
            [self._program, file, "encode"], input='"a b"', capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr
