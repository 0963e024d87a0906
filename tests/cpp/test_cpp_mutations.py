"""Bundles changed at random, under the address and undefined behaviour sanitizers: read or refused, never a crash."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from compiled import DEPS, compile_all

from eecompile import contract as c
from eecompile.bundle.digest import canonical_json, document_layout
from eecompile.student.exits import ExitSpec

pytestmark = pytest.mark.slow
ROUNDS = 300
ODD: list[Any] = [
    None, True, 0, -1, 1, 2, 16, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 62, (1 << 64) - 1, 1 << 70, 0.5, -1.5, 1e300,
    "", "x", "..", "/", "T", "N", "segments/head.onnx", "é" * 300, [], [[]], {}, {"a": 1}, [1] * 5000, "learned",
    "never", "fp16",
]  # fmt: skip


@pytest.fixture(scope="module")
def sanitized() -> list[Path | str]:
    """The command with sanitizers, under which the loader does not look where the command says."""
    folder = compile_all("cpp-asan", "-DEECOMPILE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    return [folder / "eecompile-run", "--onnxruntime", DEPS / "lib" / "libonnxruntime.so.1"]


@pytest.fixture(scope="module")
def root(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle with learned gates."""
    gates: list[Any] = ["learned", "max_prob"]
    exits = [ExitSpec(layer=n, adapter="affine", gates=gates, gate_units=4) for n in (1, 3)]
    path = tmp_path_factory.mktemp("mutations") / "bundle"
    tiny.bundle_at(path, shelf.checkpoint(exits=exits, gain=0.35))
    return tiny.calibrate(path, [{"learned": 0.3, "max_prob": 0.05}] * 2).files.path


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    for key, member in list(value.items() if isinstance(value, dict) else enumerate(value)):
        found.append((value, key))
        if isinstance(member, dict | list):
            places(member, found)
    return found


def mutate(document: dict[str, Any], rng: np.random.Generator) -> None:
    """Replace, remove or repeat one to three members."""
    for _ in range(rng.integers(1, 4)):
        found = places(document, [])
        container, key = found[rng.integers(len(found))]
        kind = rng.integers(4)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(key, container[key])
        elif kind == 2:
            other, at = found[rng.integers(len(found))]
            container[key] = json.loads(json.dumps(other[at]))
        else:
            container[key] = ODD[rng.integers(len(ODD))]


def written(document: dict[str, Any], rng: np.random.Generator) -> bytes:
    """The document with its digest, or at times with some bytes changed instead."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    if "digest" in document:
        document["digest"] = hashlib.sha256(canonical_json(rest)).hexdigest()
    data = bytearray(document_layout(document))
    if rng.integers(4) == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(256)
    return bytes(data)


def test_no_bundle_crashes_the_reader(sanitized: list[Path | str], root: Path, tmp_path: Path) -> None:
    names = [c.MANIFEST, c.POLICY, next((root / "overlays").glob("calibration-*")).relative_to(root).as_posix()]
    statuses = set()
    environment = {**os.environ, "ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"}
    for number in range(ROUNDS):
        rng = np.random.default_rng(number)
        copy = shutil.copytree(root, tmp_path / "bundle", copy_function=os.link)
        name = names[rng.integers(len(names))]
        document = json.loads((root / name).read_text())
        mutate(document, rng)
        (copy / name).unlink()
        (copy / name).write_bytes(written(document, rng))
        words = [*sanitized, copy, "--prompt-ids", "1,2,3", "--max-new-tokens", "6", "--mode", "exact"]
        words += ["--integrity", "size"]
        done = subprocess.run(words, capture_output=True, timeout=120, env=environment)
        assert done.returncode in (0, 2, 3, 4), (number, name, done.returncode, done.stderr[-3000:])
        statuses.add(done.returncode)
        shutil.rmtree(copy)
    assert {0, 4} <= statuses


@pytest.mark.parametrize("mode", c.MODES)
def test_requests_run_under_the_sanitizers(sanitized: list[Path | str], root: Path, mode: str) -> None:
    for sampling in ([], ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9"]):
        words = [*sanitized, root, "--prompt-ids", ",".join(["7"] * 140), "--max-new-tokens", "90", "--mode", mode]
        done = subprocess.run([*words, "--json", *sampling], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(json.loads(done.stdout)["token_ids"]) == 90
