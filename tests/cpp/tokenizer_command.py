"""The C++ tokenizer's command, built, and questions to it."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stressed
from compiled import compile_all


def build(sanitized: bool) -> Path:
    """The command, as it comes with one of the whole builds; skips where what that takes is missing."""
    folder = stressed.built("address") if sanitized else compile_all("cpp-test")
    return folder / "tokenizer" / "eecompile-tokenize"


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
