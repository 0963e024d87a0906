"""Opening a checkpoint: its config, generation config and tokenizer, and clear refusals."""

import json
from pathlib import Path

import pytest
import tiny

from eecompile.errors import UsageError
from eecompile.student.student import open_student


def test_opens_what_is_there(tmp_path: Path) -> None:
    student = open_student(tiny.checkpoint(tmp_path))
    assert (student.spec.family, student.spec.layers, student.path) == ("llama", 4, tmp_path)
    assert student.tokenizer_files == []


def test_the_generation_config_names_the_stop_tokens(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, tiny.config(eos_token_id=5))
    assert open_student(tmp_path).spec.eos == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}))
    assert open_student(tmp_path).spec.eos == (6, 7)
    (tmp_path / "generation_config.json").write_text("{}")
    assert open_student(tmp_path).spec.eos == (5,)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(UsageError, match=r"config\.json(.|\n)*Hugging Face model directory") as caught:
        open_student(tmp_path / name)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff\xfe", "[" * 100_000])
def test_an_unreadable_config_is_named(tmp_path: Path, name: str, text: str) -> None:
    tiny.checkpoint(tmp_path)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        open_student(tmp_path)
    assert caught.value.where == str(tmp_path / name)


def test_a_config_that_is_a_directory(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UsageError, match="not readable"):
        open_student(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, tiny.config(vocab_size=tiny.TOKENIZER_IDS - 1))
    tiny.add_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=rf"ids up to {tiny.TOKENIZER_IDS - 1}, .* only {tiny.TOKENIZER_IDS - 1} emb"):
        open_student(tmp_path)


def test_embeddings_may_be_padded(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, tiny.config(vocab_size=tiny.TOKENIZER_IDS + 7))
    names = [path.name for path in open_student(tiny.add_tokenizer(tmp_path)).tokenizer_files]
    assert names == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, name: str, text: str) -> None:
    tiny.add_tokenizer(tiny.checkpoint(tmp_path, tiny.config(vocab_size=tiny.TOKENIZER_IDS)))
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        open_student(tmp_path)
    assert caught.value.where == str(tmp_path / name)
