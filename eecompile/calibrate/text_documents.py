"""Documents of a classifier: what its exits are fitted on and calibrated with, split by their own hash.

A document is what is independent of the others: a text, a pair, or several texts that belong together, as the sentences
of a mail do. Those are one document, since a guarantee that counted them one by one would count one writer many times.
"""

import heapq
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eecompile.bundle.digest import file_sha256
from eecompile.calibrate.documents import SHARES, Split, split_of
from eecompile.errors import UsageError
from eecompile.runtime.texts import TextInput

MOST_TEXTS = 1024  # of a document
_FORM = 'a .jsonl file of {"text": "..."}, {"text": "...", "pair": "..."}, {"texts": [...]} or {"prompt_ids": [...]}'


class _Line(BaseModel):
    """A line of the file. Other members are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str | None = None
    pair: str | None = None
    texts: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)] | None = None
    prompt_ids: Annotated[list[int], Field(min_length=1)] | None = None

    @property
    def inputs(self) -> list[TextInput]:
        """The document's texts; empty where the line has none, or more than one kind."""
        if [self.text is None, self.texts is None, self.prompt_ids is None].count(False) != 1:
            return []
        if self.texts is not None:
            return list(self.texts)
        if self.prompt_ids is not None:
            return [self.prompt_ids]
        return [self.text or "" if self.pair is None else (self.text or "", self.pair)]


@dataclass(frozen=True)
class TextDocument:
    """The texts of one document, and the split it belongs to."""

    split: Split
    texts: list[TextInput]


@dataclass(frozen=True)
class TextDocuments:
    """A set of documents in a file. count: found there. `cutoff`: those that hash beyond it are left out."""

    path: Path
    sha256: str
    count: int
    cutoff: int | None = None

    def stream(self, splits: Collection[Split]) -> Iterator[TextDocument]:
        """The documents of `splits` in the order they stand in, each content once."""
        seen: set[bytes] = set()
        for texts in _read(self.path):
            digest = _digest(texts)
            if digest in seen or (self.cutoff is not None and _order(digest) > self.cutoff):
                continue
            seen.add(digest)
            if (split := split_of(digest)) in splits:
                yield TextDocument(split, texts)

    def counts(self) -> dict[Split, int]:
        """How many documents `stream` gives for each split."""
        found = Counter(d.split for d in self.stream(list(SHARES)))
        return {split: found[split] for split in SHARES}


def load_text_documents(path: Path, *, limit: int | None = None) -> TextDocuments:
    """The documents of the .jsonl file at `path`, at most `limit` of them, chosen by hash. Raises UsageError."""
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} is no number of documents", mend="take at least 1, or no limit")
    orders = [_order(_digest(texts)) for texts in _read(path)]
    if not orders:
        raise UsageError("there are no documents", where=str(path), mend=f"give {_FORM}")
    cutoff = None if limit is None or limit >= len(orders) else heapq.nsmallest(limit, orders)[-1]
    return TextDocuments(path, file_sha256(path), len(orders), cutoff)


def _read(path: Path) -> Iterator[list[TextInput]]:
    if not path.is_file() or path.suffix != ".jsonl":
        raise UsageError("there are no documents here", where=str(path), mend=f"give {_FORM}")
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}")
    except UnicodeDecodeError as e:
        raise UsageError("the text is not UTF-8", where=str(path), mend="convert it to UTF-8") from e
    except OSError as e:
        raise UsageError(f"cannot be read ({e.strerror})", where=str(path)) from e


def _parsed(line: str, where: str) -> list[TextInput]:
    try:
        inputs = _Line.model_validate_json(line).inputs
    except ValidationError as e:
        raise UsageError(f"not a document: {e.errors()[0]['msg']}", where=where, mend=f"give {_FORM}") from e
    if not inputs:
        raise UsageError('not one of "text", "texts" and "prompt_ids"', where=where, mend=f"give {_FORM}")
    return inputs


def _digest(texts: list[TextInput]) -> bytes:
    return sha256(json.dumps(texts).encode()).digest()


def _order(digest: bytes) -> int:
    """Where a limit places a document: by other bytes than its split, so that the shares stay."""
    return int.from_bytes(digest[8:16], "big")
