"""Rows: stable disjoint splits, what counts, and steps that are a function of (seed, step)."""

import json
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from eecompile_training.data import IGNORED, is_held_out, load_data, rows_of_step
from eecompile_training.settings import DataConfig

from eecompile.calibrate.documents import split_of
from eecompile.calibrate.records import read_records
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec

pytestmark = pytest.mark.torch


def lines(path: Path, documents: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


def numbered(path: Path, count: int) -> Path:
    return lines(path, [{"ids": [i, *range(i % 7 + 2)]} for i in range(count)])


def test_packed_rows_are_the_documents_one_after_another(tmp_path: Path) -> None:
    file = lines(tmp_path / "d.jsonl", [{"ids": [5, 6, 7]}, {"ids": [8, 9]}, {"ids": [5, 6, 7]}])
    data = load_data(DataConfig(files=[file], length=3, held_out=0), None, vocab=10, end=1)
    assert [row.tolist() for row in data.train.ids] == [[5, 6, 7], [1, 8, 9]]
    batch = data.train.batch([0])
    assert batch.targets.tolist() == [[6, 7, IGNORED]]


def test_documents_are_padded_and_padding_does_not_count(tmp_path: Path) -> None:
    file = lines(tmp_path / "d.jsonl", [{"ids": [5, 6, 7, 8, 9]}, {"ids": [8, 9]}])
    data = load_data(DataConfig(files=[file], length=4, rows="documents", held_out=0), None, vocab=10, end=1)
    batch = data.train.batch([0, 1])
    assert batch.ids.tolist() == [[5, 6, 7, 8], [8, 9, 1, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert batch.targets.tolist() == [[6, 7, 8, IGNORED], [9, 1, IGNORED, IGNORED]]
    assert batch.counted == 5


@pytest.mark.parametrize("form", ["prompt", "source"])
def test_only_the_completion_counts_where_asked(tmp_path: Path, form: str) -> None:
    codec = TextCodec(tiny.add_tokenizer(tmp_path))
    pair = {"prompt": " ask:", "completion": "yes"} if form == "prompt" else {"source": "ask:", "target": "yes"}
    file = lines(tmp_path / "d.jsonl", [pair])
    settings = DataConfig(files=[file], rows="documents", loss_on="completion", held_out=0)
    batch = load_data(settings, codec, vocab=512, end=2).train.batch([0])
    assert codec.decode([t for t in batch.targets[0].tolist() if t not in (IGNORED, 2)]) == "yes"
    assert codec.decode(batch.ids[0, :-1].tolist()) == "ask:yes"


def test_a_prompt_and_its_completion_are_the_document_that_calibrate_sees(tmp_path: Path) -> None:
    split = lines(tmp_path / "a.jsonl", [{"prompt": "ask:", "completion": "yes"}])
    whole = lines(tmp_path / "b.jsonl", [{"text": "ask:yes", "prompt": ["ignored"]}])
    assert next(read_records(split)).digest == next(read_records(whole)).digest


def test_splits_are_disjoint_and_rest_on_content_alone(tmp_path: Path) -> None:
    few, many = numbered(tmp_path / "few.jsonl", 40), numbered(tmp_path / "many.jsonl", 90)
    for share in (0.1, 0.5):
        small, large = (
            load_data(DataConfig(files=[f], rows="documents", held_out=share), None, vocab=99, end=None)
            for f in (few, many)
        )
        for a, b, other in (
            (small.train, large.train, large.held_out),
            (small.held_out, large.held_out, large.train),
        ):
            firsts = {int(row[0]) for row in a.ids}
            assert firsts <= {int(row[0]) for row in b.ids}
            assert not firsts & {int(row[0]) for row in other.ids}


def test_half_held_out_is_what_calibrate_tests_on(tmp_path: Path) -> None:
    for record in read_records(numbered(tmp_path / "d.jsonl", 60)):
        assert is_held_out(record.digest, 0.5) == (split_of(record.digest) == "test")


@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 3))
def test_every_epoch_has_every_row_once(count: int, batch: int, seed: int) -> None:
    drawn = [i for step in range(3 * count) for i in rows_of_step(count, batch, seed, step)]
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert rows_of_step(count, batch, seed, 2) == drawn[2 * batch : 3 * batch]


def test_faults(tmp_path: Path) -> None:
    text = lines(tmp_path / "t.jsonl", [{"text": "abc"}])
    with pytest.raises(UsageError, match="no tokenizer"):
        load_data(DataConfig(files=[text]), None, vocab=9, end=None)
    ids = lines(tmp_path / "i.jsonl", [{"ids": [9]}])
    with pytest.raises(UsageError, match=r"outside 0\.\.8"):
        load_data(DataConfig(files=[ids]), None, vocab=9, end=None)
    with pytest.raises(UsageError, match="no row"):
        load_data(DataConfig(files=[ids]), None, vocab=10, end=None)
