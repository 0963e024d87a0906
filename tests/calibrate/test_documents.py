"""Documents: three forms, splits by content, copies once, and words for what cannot be used."""

import hashlib
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile.calibrate.documents import SHARES, Documents, load_documents
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec

ALL = tuple(SHARES)


def lines(path: Path, documents: Sequence[Any]) -> Path:
    """A .jsonl file of ids or texts."""
    key = {str: "text", list: "ids"}
    path.write_text("".join(json.dumps({key[type(d)]: d}) + "\n" for d in documents), encoding="utf-8")
    return path


def numbered(count: int, length: int = 12) -> list[list[int]]:
    """Documents of token ids, all different."""
    return [[i % 100, i // 100, *range(length - 2)] for i in range(count)]


def ids(documents: Documents, splits: Sequence[Any] = ALL, **limits: Any) -> list[list[int]]:
    """The ids of the documents of `splits`."""
    settings = {"vocab": 512, "context": 64, **limits}
    return [d.ids for d in documents.stream(None, splits=splits, **settings)]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """A byte-level tokenizer."""
    return TextCodec(tiny.add_tokenizer(tmp_path_factory.mktemp("codec")))


def test_splits_are_disjoint_complete_and_in_proportion(tmp_path: Path) -> None:
    documents = load_documents(lines(tmp_path / "d.jsonl", numbered(2000)))
    split = {name: ids(documents, [name]) for name in ALL}
    assert sorted(d for part in split.values() for d in part) == sorted(numbered(2000))
    for name, share in SHARES.items():
        assert len(split[name]) / 2000 == pytest.approx(share, abs=0.04)
    assert documents.counts(None, vocab=512, context=64) == {name: len(split[name]) for name in ALL}


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=9), min_size=1, max_size=40), st.randoms())
def test_a_document_keeps_its_split_whatever_file_it_stands_in(
    tmp_path: Path, documents: list[list[int]], random: Any
) -> None:
    first = load_documents(lines(tmp_path / "a.jsonl", documents))
    others = [*documents, *numbered(20)] * 2
    random.shuffle(others)
    second = load_documents(lines(tmp_path / "b.jsonl", others))
    for name in ALL:
        here = ids(first, [name])
        assert len({tuple(d) for d in here}) == len(here), "a copy was not dropped"
        assert {tuple(d) for d in here} <= {tuple(d) for d in ids(second, [name])}


def test_documents_that_agree_as_far_as_they_are_read_are_copies(tmp_path: Path) -> None:
    same = [[*range(20), i] for i in range(50)]
    documents = load_documents(lines(tmp_path / "d.jsonl", same), max_tokens=16)
    assert ids(documents) == [list(range(16))]


def test_long_documents_are_cut_off_and_short_ones_left_out(tmp_path: Path) -> None:
    documents = load_documents(lines(tmp_path / "d.jsonl", [list(range(200)), list(range(7)), list(range(8))]))
    assert sorted(map(len, ids(documents, context=256))) == [8, 128]
    assert sorted(map(len, ids(documents, context=50))) == [8, 50]


def test_the_three_forms_hold_the_same_documents(tmp_path: Path, codec: TextCodec) -> None:
    texts = [f"document number {i}\nof several lines" for i in range(30)]
    (tmp_path / "folder").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "folder" / f"{i:02}.txt").write_text(text)
    (tmp_path / "feeds.txt").write_text("\f".join(texts))
    (tmp_path / "dashes.txt").write_text("\n---\n".join(texts) + "\n---\n\n")
    paths = [lines(tmp_path / "d.jsonl", texts), tmp_path / "folder", tmp_path / "feeds.txt", tmp_path / "dashes.txt"]
    found = [
        [(d.split, d.ids) for d in load_documents(p).stream(codec, vocab=512, context=64, splits=ALL)] for p in paths
    ]
    assert len(found[0]) == 30
    assert all(other == found[0] for other in found)
    assert [load_documents(p).count for p in paths] == [30] * 4


def test_other_members_of_a_line_are_ignored_and_ids_go_before_text(tmp_path: Path, codec: TextCodec) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a text that is not used", "prompt_ids": [1,2,3,4,5,6,7,8], "source": {"x": 1}}\n\n')
    assert ids(load_documents(path)) == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_the_hash_is_the_files_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", numbered(5))
    assert load_documents(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.txt").write_text("one")
    before = load_documents(tmp_path / "f").sha256
    (tmp_path / "f" / "a.txt").write_text("two")
    assert load_documents(tmp_path / "f").sha256 != before


def test_a_limit_takes_some_of_each_split_and_the_same_ones_each_time(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", numbered(1000))
    whole, some, fewer = load_documents(path), load_documents(path, limit=200), load_documents(path, limit=100)
    assert len(ids(some)) == 200
    assert len(ids(fewer)) == 100
    assert all(d in ids(some) for d in ids(fewer))
    for name, share in SHARES.items():
        assert all(d in ids(whole, [name]) for d in ids(some, [name]))
        assert len(ids(some, [name])) / 200 == pytest.approx(share, abs=0.12)
    assert len(ids(load_documents(path, limit=5000))) == 1000


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = lines(tmp_path / f"{count}.jsonl", numbered(count, length=400))
        tracemalloc.start()
        total = sum(len(d) for d in ids(load_documents(path, limit=50)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == 50 * 64
        return size

    small, large = peak(200), peak(4000)
    assert large < small + 1_000_000, "the large file has 8 MB"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("d.txt", "only one document\nof two lines\n", "one document"),
        ("d.txt", " \n", "no documents"),
        ("d.jsonl", "", "no documents"),
        ("d.jsonl", '{"text": ""}\n', "no documents"),
        ("d.jsonl", '{"text": "a"}\nnot json\n', "line 2: not a document"),
        ("d.jsonl", '["a"]\n', "line 1: not a document"),
        ("d.jsonl", '{"ids": [1, true]}\n', "line 1: not a document"),
        ("d.jsonl", '{"ids": [1.5]}\n', "line 1: not a document"),
        ("d.jsonl", '{"body": "a"}\n', 'line 1: neither "text" nor "ids"'),
        ("d.jsonl", '{"text": "\\ud800 is half a character"}\n', "line 1: not a document"),
        ("d.csv", "a,b\n", "do not come as .csv"),
        ("plain", "a", "do not come as a file without suffix"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: str, what: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=what) as caught:
        load_documents(tmp_path / name)
    assert caught.value.mend


def test_what_is_not_there_or_not_utf8_is_said(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\f\xff")
    (tmp_path / "empty").mkdir()
    for path, what in [("missing.jsonl", "no documents here"), ("bytes.txt", "not UTF-8"), ("empty", "no .txt files")]:
        with pytest.raises(UsageError, match=what):
            load_documents(tmp_path / path)


@pytest.mark.parametrize("bad", [{"max_tokens": 7}, {"limit": 0}])
def test_limits_have_limits(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        load_documents(lines(tmp_path / "d.jsonl", numbered(3)), **bad)


def test_text_needs_a_tokenizer_and_ids_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tokenizer"):
        ids(load_documents(lines(tmp_path / "t.jsonl", ["some text that is long enough"] * 2)))
    with pytest.raises(UsageError, match="line 1: token id 77 is outside"):
        ids(load_documents(lines(tmp_path / "i.jsonl", [[77] * 9, [1] * 9])), vocab=77)
    with pytest.raises(UsageError, match="outside"):
        ids(load_documents(lines(tmp_path / "n.jsonl", [[-1] * 9])), vocab=77)


def pairs(path: Path, documents: Sequence[tuple[str, str]]) -> Path:
    """A .jsonl file of prompts and completions."""
    path.write_text("".join(json.dumps({"prompt": p, "completion": e}) + "\n" for p, e in documents), encoding="utf-8")
    return path


def test_a_prompt_counts_for_nothing_but_the_context(tmp_path: Path, codec: TextCodec) -> None:
    """Its tokens are there and are not cut off; `first` is where the completion begins; short completions go."""
    long, end = "x" * 40, "y" * 30
    path = pairs(tmp_path / "d.jsonl", [(long, end), (f"  {long}z", end), ("short ", "y" * 4), (long + "w", end)])
    found = list(load_documents(path, max_tokens=12).stream(codec, vocab=512, context=64, splits=ALL))
    assert len(found) == 3
    for document in found:
        prompt, rest = codec.decode(document.ids[: document.first]), codec.decode(document.ids[document.first :])
        assert prompt.startswith(long)
        assert end.startswith(rest)
        assert len(document.ids) - document.first == 12
    cut = list(
        load_documents(path).stream(codec, vocab=512, context=len(found[0].ids[: found[0].first]) + 9, splits=ALL)
    )
    assert {len(d.ids) - d.first for d in cut} <= {8, 9}
    assert any(d.first == found[0].first for d in cut)
