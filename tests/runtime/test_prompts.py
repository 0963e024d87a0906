"""Prompt files: what they may hold, and the line at fault where they do not."""

from pathlib import Path
from typing import Any

import pytest

from eecompile.errors import UsageError
from eecompile.runtime.prompts import read_prompts, read_texts
from eecompile.runtime.request import prompt_ids


def test_text_files_hold_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \n")
    assert read_prompts(file) == ["one", " two "]


def test_records_hold_text_or_ids(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "text": "b", "label": 3}\n\n{"text": "c"}\n{"prompt_ids": [1, 2]}\n')
    assert read_prompts(file) == ["a", "c", [1, 2]]


def test_a_text_with_a_pair_is_one_for_classifiers(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a", "pair": "b"}\n{"text": "c"}\n{"prompt_ids": [1, 2]}\n')
    assert list(read_texts(file)) == [("a", "b"), "c", [1, 2]]
    assert read_prompts(file) == ["a", "c", [1, 2]]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_an_empty_file_holds_no_prompt(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("\n \n")
    with pytest.raises(UsageError, match="no prompt"):
        read_prompts(tmp_path / name)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_prompts(tmp_path / "absent.txt")
    assert caught.value.where.endswith("absent.txt")


@pytest.mark.parametrize(
    "line",
    ["{", "no", "[1]", "{}", '{"prompt_ids": [true]}', '{"prompt_ids": ["1"]}', '{"prompt": 3}', "{" * 5000],
)
def test_bad_lines_name_file_and_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UsageError) as caught:
        read_prompts(file)
    assert caught.value.where.endswith("prompts.jsonl:2")
    assert caught.value.mend


def test_text_needs_a_tokenizer_and_ids_do_not(shelf: Any) -> None:
    bundle = shelf.bundle()
    assert prompt_ids(bundle.text, [1, 2]) == [1, 2]
    with pytest.raises(UsageError, match="no tokenizer"):
        prompt_ids(bundle.text, "text")
