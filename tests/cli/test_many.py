"""`run --input`: every prompt's line is what `run --json` says of it alone, in order, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import cli

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "the other"}, {"prompt_ids": [5, 6, 7]}, {"prompt": "th"}, {"text": "a longer text than the others"},
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    source = tiny.add_tokenizer(tiny.checkpoint(folder / "checkpoint", tiny.config(vocab_size=288), gain=0.35))
    return tiny.bundle_at(folder / "bundle", source, [1, 3], slots=8)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("mode", ["full", "exact"])
def test_a_file_of_prompts_gives_a_line_each(bundle: Path, tmp_path: Path, mode: str) -> None:
    source, target = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    options = ["--mode", mode, "--max-new-tokens", "6", *([] if mode == "full" else ["--threshold", "1=0.05"])]
    said = cli("run", bundle, "--input", source, "--output", target, "--batch", "3", *options)
    assert said.stdout == ""
    assert "4 prompts, 0 failed" in said.stderr
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(found) == 4
    for line, asked in zip(found, PROMPTS, strict=True):
        ids = asked.get("prompt_ids")
        words = ["--prompt-ids", ",".join(map(str, ids))] if ids else [asked.get("prompt", asked.get("text"))]
        alone = json.loads(cli("run", bundle, *words, *options, "--json").stdout)
        keys = ["prompt_ids", "token_ids", "text", "mode", "stop_reason", *(["exit_layers"] if mode == "full" else [])]
        assert {key: line[key] for key in keys} == {key: alone[key] for key in keys}
        assert set(line) == set(alone)
        assert set(line["stats"]) == set(alone["stats"])
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_prompt_that_cannot_be_served_costs_the_others_nothing(bundle: Path, tmp_path: Path) -> None:
    prompts = [PROMPTS[0], {"prompt_ids": [999]}, {"prompt_ids": list(range(1, 200)) * 99}, *PROMPTS[1:]]
    source, target = write(tmp_path / "in.jsonl", prompts), tmp_path / "out.jsonl"
    said = cli("run", bundle, "--input", source, "--output", target, "--max-new-tokens", "2", status=1)
    assert "2 of 6 prompts failed" in said.stderr
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [list(line) == ["error"] for line in found] == [False, True, True, False, False, False]
    assert "999 is outside" in found[1]["error"]
    assert "do not fit" in found[2]["error"]
    alone = json.loads(cli("run", bundle, "--prompt-ids", "1,2,3", "--max-new-tokens", "2", "--json").stdout)
    again = write(tmp_path / "again.jsonl", [{"prompt_ids": [999]}, {"prompt_ids": [1, 2, 3]}])
    cli("run", bundle, "--input", again, "--output", target, "--max-new-tokens", "2", status=1)
    assert json.loads(target.read_text().splitlines()[1])["token_ids"] == alone["token_ids"]


def test_an_output_that_is_no_file_is_written_to_as_it_stands(bundle: Path, tmp_path: Path) -> None:
    """A device stays a device, a link a link; a directory is refused before anything runs."""
    source = write(tmp_path / "in.jsonl", [{"prompt_ids": [1]}])
    command = ["run", bundle, "--input", source, "--max-new-tokens", 1, "--output"]
    pipe, link, real = tmp_path / "pipe", tmp_path / "link", tmp_path / "real"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    cli(*command, pipe)
    assert json.loads(os.read(reader, 1 << 16))["prompt_ids"] == [1]
    assert pipe.is_fifo()
    os.close(reader)
    link.symlink_to(real)
    cli(*command, link)
    assert link.is_symlink()
    assert json.loads(real.read_text())["prompt_ids"] == [1]
    assert "directory" in cli(*command, tmp_path, status=2).stderr


def test_a_sequence_that_fails_says_so_in_its_line(tmp_path: Path) -> None:
    settings = tiny.config()
    tensors = tiny.weights(settings)
    tensors["model.embed_tokens.weight"][77] = np.nan
    bundle = tiny.bundle_at(tmp_path / "b", tiny.checkpoint(tmp_path / "c", settings, tensors), slots=8)
    source, target = write(tmp_path / "in.jsonl", [{"prompt_ids": [77]}, {"prompt_ids": [1]}]), tmp_path / "out.jsonl"
    said = cli("run", bundle, "--input", source, "--output", target, "--max-new-tokens", "2", status=1)
    assert "1 of 2 prompts failed" in said.stderr
    failed, right = (json.loads(line) for line in target.read_text().splitlines())
    assert "not finite" in failed["error"]
    assert (failed["stop_reason"], failed["text"]) == ("error", None)
    assert "error" not in right
    assert len(right["token_ids"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--batch", "2", "hello"],
        ["--threshold", "1=0.1", "hello"],
        ["--json", "--stream", "hello"],
        ["--input", "x.jsonl", "--output", "y.jsonl", "--json"],
        ["--threads", "0", "hello"],
        ["--input", "x.jsonl"],
        ["--output", "y.jsonl", "hello"],
        ["--input", "x", "--output", "y", "hello"],
    ],
)
def test_options_that_do_not_go_together_are_refused(bundle: Path, options: list[str]) -> None:
    cli("run", bundle, *options, status=2)


def test_an_output_that_cannot_be_written_is_the_users_fault(bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt_ids": [1]}])
    said = cli("run", bundle, "--input", source, "--output", tmp_path / "no" / "out", "--max-new-tokens", 1, status=2)
    assert "cannot be written" in said.stderr


def test_build_takes_a_batch_and_its_bundle_no_larger_one(bundle: Path, tmp_path: Path) -> None:
    built = tmp_path / "b"
    source = bundle.parent / "checkpoint"
    said = json.loads(cli("build", source, "-o", built, "--batch", 2, "--no-profile", "--json").stdout)
    assert said["slots"] == 2
    prompts = write(tmp_path / "in.jsonl", PROMPTS)
    run = ["run", built, "--input", prompts, "--output", tmp_path / "o", "--max-new-tokens", 1]
    cli(*run, "--batch", 2)
    assert "--batch 3" in cli(*run, "--batch", 3, status=2).stderr
    assert "65" in cli("build", source, "-o", built, "--batch", 65, "--no-profile", status=2).stderr
