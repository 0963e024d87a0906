"""Documents as rows of tokens, and which of them a step trains on.

Documents are read as `exits` and `calibrate` read them (eecompile/calibrate/records.py) and split by the same bytes of
their hash: held out is the end of the scale where calibration's test documents are. What a step trains on is a function
of (seed, step), so that a run that goes on after a kill, and every process of several, knows it without being told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eecompile.calibrate.records import Record, data_digest, read_records
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec
from eecompile_training.settings import DataConfig

Ids = NDArray[np.int32]
IGNORED = -100  # as torch's cross_entropy has it
_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class Tokens:
    """A document's tokens: `ids`, of which those from `learnt` on are to be predicted."""

    ids: list[int]
    learnt: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows to train on. ids [B, T], padded on the right; mask [B, T]: what is no padding; targets [B, T]: the token
    that follows each, IGNORED where it does not count."""

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor

    @property
    def counted(self) -> int:
        """Predictions that count."""
        return int((self.targets != IGNORED).sum())

    def anchored(self, every: int) -> torch.Tensor:
        """bool [B, T]: of the places that a token follows but whose prediction does not count, every `every`-th."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        followed = torch.nn.functional.pad(self.mask[:, 1:], (0, 1))
        return followed & (self.targets == IGNORED) & (places % every == 0)

    def part(self, start: int, stop: int) -> "Batch":
        """Rows from `start` to before `stop`."""
        return Batch(self.ids[start:stop], self.mask[start:stop], self.targets[start:stop])

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(self.ids.to(device), self.mask.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Rows:
    """Rows of tokens. ids: one array a row; counted: which of its tokens are to be predicted."""

    ids: Sequence[Ids]
    counted: Sequence[NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.ids))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those rows, padded to the longest with id 0."""
        longest = max(len(self.ids[i]) for i in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        mask = torch.zeros(len(indices), longest, dtype=torch.bool)
        targets = torch.full((len(indices), longest), IGNORED)
        for row, i in enumerate(indices):
            length, tokens = len(self.ids[i]), torch.from_numpy(self.ids[i].astype(np.int64))
            ids[row, :length], mask[row, :length] = tokens, True
            follow = torch.where(torch.from_numpy(self.counted[i][1:]), tokens[1:], IGNORED)
            targets[row, : length - 1] = follow
        return Batch(ids, mask, targets)

    def frequent(self, count: int) -> list[int]:
        """The `count` most frequent tokens, most frequent first, ties by id."""
        ids, counts = np.unique(np.concatenate(list(self.ids)), return_counts=True)
        return [int(t) for t in ids[np.lexsort((ids, -counts))[:count]]]


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows that training never sees, and the SHA-256 of each file."""

    train: Rows
    held_out: Rows
    sha256: dict[str, str]


def load_data(config: DataConfig, codec: TextCodec | None, *, vocab: int, end: int | None) -> TrainingData:
    """The rows of `config.files` for a causal language model.

    codec: the checkpoint's tokenizer, None where documents are ids. end: the token between packed documents, which
    also ends each. Raises UsageError where there is nothing to train on, or ids are not from 0 to vocab - 1.
    """
    documents = list(read_documents(config, codec, vocab=vocab))
    parts = []
    for held_out in (False, True):
        chosen = [t for t, out in documents if out is held_out]
        parts.append(_packed(chosen, config, end) if config.rows == "packed" else _one_a_row(chosen, config, end))
    if not len(parts[0]):
        raise UsageError(
            "the documents give no row to train on", where=str(config.files[0]), mend="shorten data.length"
        )
    return TrainingData(parts[0], parts[1], {str(file): data_digest(file) for file in config.files})


def read_documents(config: DataConfig, codec: TextCodec | None, *, vocab: int) -> Iterator[tuple[Tokens, bool]]:
    """Each document of the files once, tokenised, and whether it is held out."""
    seen: set[bytes] = set()
    for file in config.files:
        count = 0
        for record in read_records(file):
            if record.digest in seen or (config.limit is not None and count >= config.limit):
                continue
            seen.add(record.digest)
            count += 1
            yield _tokens(record, codec, vocab, config), is_held_out(record.digest, config.held_out)


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether a document of this SHA-256 is among the `share` that is held out; the upper end of documents.split_of."""
    return int.from_bytes(digest[:8], "big") / 2**64 >= 1 - share


def rows_of_step(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The rows of `count` that step `step` (from 0) trains on: an epoch has each row once, in an order of its own."""
    places = [divmod(place, count) for place in range(step * batch, (step + 1) * batch)]
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch, _ in places}
    return [int(orders[epoch][i]) for epoch, i in places]


def _tokens(record: Record, codec: TextCodec | None, vocab: int, config: DataConfig) -> Tokens:
    first, rest = _parts(record)
    most = None if config.rows == "packed" else config.length
    if rest is None:
        return Tokens(_ids(first, record.where, codec, vocab, most))
    prompt = _ids(first, record.where, codec, vocab, most)
    end = _ids(rest, record.where, codec, vocab, most, special=False)
    return Tokens(prompt + end, len(prompt) if config.loss_on == "completion" else 0)


def _parts(record: Record) -> tuple[str | list[int], str | list[int] | None]:
    """A document as it is, or its prompt and what follows."""
    if record.target is not None:
        return record.content, record.target
    prompt = (record.prompt or "").lstrip()
    if not isinstance(record.content, str) or not prompt:
        return record.content, None
    return prompt, record.content[len(prompt) :]


def _ids(
    content: str | list[int], where: str, codec: TextCodec | None, vocab: int, most: int | None, *, special: bool = True
) -> list[int]:
    if isinstance(content, str):
        if codec is None:
            mend = 'give token ids: {"ids": [1, 2, ...]} a line of a .jsonl file'
            raise UsageError("the documents are text and the checkpoint has no tokenizer", where=where, mend=mend)
        text = content if most is None else content[: most * _CHARACTERS_PER_TOKEN]
        ids = list(codec.tokenizer.encode(text, add_special_tokens=special).ids)
        return ids[:most]
    if outside := [t for t in content if not 0 <= t < vocab]:
        raise UsageError(f"token id {outside[0]} is outside 0..{vocab - 1}", where=where)
    return list(content[:most])


def _counted(tokens: Tokens, ids: Sequence[int]) -> list[bool]:
    return [i >= tokens.learnt for i in range(len(ids))]


def _packed(documents: Sequence[Tokens], config: DataConfig, end: int | None) -> Rows:
    """One after another, each ended by `end`, in rows of `length`; what is left over at the end is dropped."""
    ids, counted = list[int](), list[bool]()
    for document in documents:
        whole = [*document.ids, *([] if end is None else [end])]
        ids += whole
        counted += _counted(document, whole)
    starts = range(0, len(ids) - config.length + 1, config.length)
    all_ids, all_counted = np.array(ids, np.int32), np.array(counted, np.bool_)
    return Rows([all_ids[s : s + config.length] for s in starts], [all_counted[s : s + config.length] for s in starts])


def _one_a_row(documents: Sequence[Tokens], config: DataConfig, end: int | None) -> Rows:
    """Each cut off at `length`; without a token to predict a row is left out."""
    ids, counted = list[Ids](), list[NDArray[np.bool_]]()
    for document in documents:
        whole = [*document.ids, *([] if end is None else [end])][: config.length]
        mask = _counted(document, whole)
        if any(mask[1:]):
            ids.append(np.array(whole, np.int32))
            counted.append(np.array(mask, np.bool_))
    return Rows(ids, counted)
