"""Documents: what exits are fitted on and calibrated with, read as a stream and split by their own hash.

A document, never a token, is the unit that a guarantee counts (METHODS.md 4), so text without document boundaries is
refused. A document's split depends on nothing but its content: whatever file it stands in, what was fitted on is never
tested on.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np

from eecompile.calibrate.records import FORMS, SEPARATE, Record, data_digest, read_records
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec

Split = Literal["fit", "path", "test"]
Name = TypeVar("Name", bound=str)
SHARES: Final[dict[Split, float]] = {"fit": 0.35, "path": 0.15, "test": 0.5}
MAX_TOKENS: Final = 128
MIN_TOKENS: Final = 8
_CHARACTERS_PER_TOKEN: Final = 32  # more than this is not tokenised only to be cut off


@dataclass(frozen=True)
class Document:
    """Token ids of one document, and the split it belongs to. `target`: of a source that came with one.

    `first`: where the tokens after its prompt begin, 0 without one. What is said of those before does not count, since
    a prompt runs at full depth.
    """

    split: Split
    ids: list[int]
    target: list[int] | None = None
    first: int = 0


@dataclass(frozen=True)
class Documents:
    """A set of documents on disk; nothing of it is kept in memory.

    sha256: of the data (of the file; for a directory, of its files' names and hashes). count: documents found.
    max_tokens: a document is cut off there, its prompt not counted. `cutoff`: documents whose hash orders them after it
    are left out.
    """

    path: Path
    sha256: str
    count: int
    max_tokens: int = MAX_TOKENS
    cutoff: int | None = None

    def stream(
        self, codec: TextCodec | None, *, vocab: int, context: int, splits: Collection[Split]
    ) -> Iterator[Document]:
        """The documents of `splits`, tokenised, in the order they stand in, each content once.

        codec: the bundle's tokenizer, None where it has none. A document is cut off at `max_tokens` tokens after its
        prompt, or at `context`; shorter ones than 8 are left out. Raises UsageError for text without a tokenizer and
        ids that are not from 0 to vocab - 1.
        """
        seen: set[bytes] = set()
        most = min(self.max_tokens, context)
        for raw in read_records(self.path):
            digest = raw.digest
            if self.cutoff is not None and _order(digest) > self.cutoff:
                continue
            ids, first = _tokens(raw.content, raw.where, codec, vocab, most), 0
            if isinstance(raw.content, str) and (prompt := (raw.prompt or "").lstrip()):
                ids, first = _after_prompt(prompt, raw, codec, vocab, self.max_tokens, context)
            content = hashlib.sha256(np.array(ids, np.int64).tobytes()).digest()[:16]
            if len(ids) - first < MIN_TOKENS or content in seen:
                continue
            seen.add(content)
            if (split := split_of(digest)) in splits:
                target = None if raw.target is None else _tokens(raw.target, raw.where, codec, vocab, most)
                yield Document(split, ids, target, first)

    def counts(self, codec: TextCodec | None, *, vocab: int, context: int) -> dict[Split, int]:
        """How many documents `stream` gives for each split. Raises as it does."""
        found = Counter(d.split for d in self.stream(codec, vocab=vocab, context=context, splits=SHARES))
        return {split: found[split] for split in SHARES}


def load_documents(path: Path, *, max_tokens: int = MAX_TOKENS, limit: int | None = None) -> Documents:
    """The documents at `path`: a .jsonl file, a directory of .txt files, or one .txt file.

    A line of .jsonl is an object with "text", or with token ids in "ids" or "prompt_ids", or for an encoder-decoder
    with "source" and "target" (text or ids; any other document is a source); a .txt file of a directory
    is one document; in one .txt file form feeds and lines of only --- stand between documents.
    limit: take at most so many, chosen by their hash (None: all).
    Raises UsageError where there is nothing to read, the format is none of these, or a .txt holds one document.
    """
    if max_tokens < MIN_TOKENS:
        raise UsageError(f"documents of {max_tokens} tokens are too short", mend=f"take at least {MIN_TOKENS}")
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} is no number of documents", mend="take at least 1, or no limit")
    count, lowest = 0, list[int]()
    for raw in read_records(path):
        count += 1
        if limit is not None:
            _keep_lowest(lowest, _order(raw.digest), limit)
    if not count:
        raise UsageError("there are no documents", where=str(path), mend=FORMS)
    if count == 1 and path.suffix == ".txt" and path.is_file():
        raise UsageError("the text is one document, and documents are what is counted", where=str(path), mend=SEPARATE)
    cutoff = -lowest[0] if limit is not None and count > limit else None
    return Documents(path, data_digest(path), count, max_tokens, cutoff)


def split_of(digest: bytes) -> Split:
    """The split of a document with this SHA-256: fit 35%, path 15%, test 50%."""
    return share_of(digest, SHARES)


def share_of(digest: bytes, shares: Mapping[Name, float]) -> Name:
    """Which of the shares, which add up to one, a digest falls into; the last where rounding leaves none."""
    place, below = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, part in shares.items():
        below += part
        if place < below:
            return name
    return list(shares)[-1]


def _order(digest: bytes) -> int:
    """Where a limit places a document: by other bytes than its split, so that the shares stay."""
    return int.from_bytes(digest[8:16], "big")


def _keep_lowest(lowest: list[int], value: int, limit: int) -> None:
    """`lowest` is a heap of the negated `limit` lowest values."""
    if len(lowest) < limit:
        heapq.heappush(lowest, -value)
    else:
        heapq.heappushpop(lowest, -value)


def _after_prompt(
    prompt: str, raw: Record, codec: TextCodec | None, vocab: int, most: int, context: int
) -> tuple[list[int], int]:
    """The ids of a prompt and of up to `most` tokens after it, `context` in all; and the number of the prompt's."""
    first = _tokens(prompt, raw.where, codec, vocab, context)
    assert codec is not None
    rest = raw.content[len(prompt) : len(prompt) + most * _CHARACTERS_PER_TOKEN]
    return [*first, *codec.tokenizer.encode(rest, add_special_tokens=False).ids[:most]][:context], len(first)


def _tokens(content: str | list[int], where: str, codec: TextCodec | None, vocab: int, most: int) -> list[int]:
    if isinstance(content, str):
        if codec is None:
            mend = 'give token ids: {"ids": [1, 2, ...]} a line of a .jsonl file'
            raise UsageError("the documents are text and the checkpoint has no tokenizer", where=where, mend=mend)
        return codec.encode(content[: most * _CHARACTERS_PER_TOKEN])[:most]
    if outside := [t for t in content if not 0 <= t < vocab]:
        raise UsageError(f"token id {outside[0]} is outside 0..{vocab - 1}", where=where)
    return content[:most]
