"""A program in plain C99 that includes eecompile.h, and nothing else of the project."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_encoder as te
from c_calls import ONNXRUNTIME
from compiled import SOURCES

SOURCE = Path(__file__).parent / "c_program.c"


def test_a_program_in_c_classifies_and_runs_a_batch(library: Path, shelf: Any, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    program = tmp_path / "program"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    link = [f"-L{library.parent}", "-leecompile", f"-Wl,-rpath,{library.parent}"]
    words = [compiler, *strict, f"-I{SOURCES / 'include'}", SOURCE, "-o", program, *link]
    subprocess.run(words, check=True, timeout=300)

    def said(bundle: Path) -> list[str]:
        done = subprocess.run([program, bundle, ONNXRUNTIME], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    opened = shelf.bundle(at=[1, 3], gain=0.35, slots=4)
    lines = said(opened.files.path)
    for number, prompt in enumerate(([3, 1, 4], [1, 5])):
        ids = tiny.tokens(opened, prompt, 4)
        assert [line for line in lines if line.startswith(f"token {number}")] == [f"token {number} {i}" for i in ids]
        assert any(line.startswith(f"end {number} 0 ") and line.endswith(f" {len(ids)} []") for line in lines)
    source = te.checkpoint(tmp_path / "encoder", te.config("bert", "tokens"))
    classifier = te.open_bundle(tmp_path / "classifier", source, [1])
    answers = classifier.classifier().classify([[5, 6, 7], [5]])
    expected = []
    for number, one in enumerate(answers):
        for place, token in enumerate(one.tokens or []):
            label = classifier.manifest.labels.index(token.label)
            expected.append(f"answer {number} {place} {label} {token.label}")
        expected.append(f"answer {number} -1 -1 ")
    assert said(classifier.files.path) == expected
