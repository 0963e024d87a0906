"""tools/cpp_parity.py: what it runs, that it counts, and that it says where the runtimes differ."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny
from compiled import ROOT
from cpp_parity import said

from eecompile.runtime.prompts import read_prompts

CASES = "tiny family llama-fused fp16,tiny encoder roberta-sequence"


def held(command: Path, folder: Path, only: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and table of the tool on cases with these words in their names."""
    words = ["--command", command, "--scratch", folder, "--runs", 1, "--only", only, "--out", folder / "report.json"]
    line = [sys.executable, ROOT / "tools" / "cpp_parity.py", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((folder / "report.json").read_text()), done.stdout


def test_both_runtimes_say_the_same(command: Path, tmp_path: Path) -> None:
    status, report, table = held(command, tmp_path, CASES)
    runs = report["runs"]
    assert (status, [run["difference"] for run in runs]) == (0, [None] * len(runs))
    assert {run["case"] for run in runs} >= {"tiny family llama-fused fp16"}
    assert {word for run in runs for word in run["about"]["mode"]} == {"full", "confident", "exact"}
    assert {rule for run in runs for rule in run["about"].get("skipped layers", [])} == {
        "catch_up", "propagate", "selected",
    }  # fmt: skip
    confident = [run for run in runs if run["about"]["mode"] == ["confident"]]
    assert all(run["early"] > 0 for run in confident)
    tokens, early = (sum(run[name] for run in runs) for name in ("tokens", "early"))
    assert f"| all | {len(runs)} | {sum(run['answers'] for run in runs)} | {tokens} | {early} | 0 |" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json"]


def test_a_difference_is_found(command: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text(f'#!/bin/sh\n"{command}" "$@" | sed \'s/"layer_rows":/&1/\'\n')
    broken.chmod(0o755)
    status, report, table = held(broken, tmp_path, "tiny family llama-fused fp16")
    runs = report["runs"]
    assert status == 1
    assert all(run["difference"].startswith("[0]['stats']['layer_rows']: 1") for run in runs)
    assert table.splitlines()[2].endswith(f"| {len(runs)} |")


def test_prompts_are_read_from_files_as_in_python(command: Path, tmp_path: Path) -> None:
    """Lines that end as on Windows, and records of a source alone."""
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "c", tiny.config(vocab_size=tiny.TOKENIZER_IDS)))
    opened = tiny.open_bundle(tmp_path / "b", source)
    for name, lines in (
        ("in.txt", b"the cat\r\n\r\na dog\r\n"),
        ("in.jsonl", b'{"source": "the cat"}\r\n'),
    ):
        (tmp_path / name).write_bytes(lines)
        words = ["--input", tmp_path / name, "--output", tmp_path / "out", "--raw", "--max-new-tokens", 1]
        done = said(command, opened.files.path, *words)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line)["prompt_ids"] for line in (tmp_path / "out").read_text().splitlines()]
        assert opened.text is not None
        assert found == [opened.text.encode(str(prompt)) for prompt in read_prompts(tmp_path / name)]
