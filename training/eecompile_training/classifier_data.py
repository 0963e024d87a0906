"""Texts of a classifier as rows to train on, split as `exits` and `calibrate` split them, with labels where given."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eecompile.calibrate.records import data_digest
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec
from eecompile.student.encoder import EncoderSpec
from eecompile_training.data import IGNORED, is_held_out
from eecompile_training.settings import DataConfig

_FORM = (
    'a .jsonl file of {"text": ..., "label": ...}, {"text": ..., "pair": ..., "label": ...}, {"texts": [...]} or '
    '{"ids": [...], "label": ... or "labels": [...]}; labels may be missing'
)
_CHARACTERS_PER_TOKEN = 32


class _Line(BaseModel):
    """A line of the file. Other members are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str | None = None
    pair: str | None = None
    texts: Annotated[list[str], Field(min_length=1)] | None = None
    ids: Annotated[list[int], Field(min_length=1)] | None = None
    label: str | int | float | None = None
    labels: list[int] | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document, as calibrate/text_documents.py has it."""
        text = self.text if self.pair is None else (self.text, self.pair)
        inputs = self.texts if self.texts is not None else [self.ids] if self.ids is not None else [text]
        return hashlib.sha256(json.dumps(inputs).encode()).digest()


@dataclass(frozen=True)
class ClassRow:
    """A text's tokens. counted: those that are classified (a text's first stands for it); targets: of those, IGNORED
    where there is no label; a regression's are values."""

    ids: list[int]
    types: list[int]
    counted: list[bool]
    targets: list[float]


@dataclass(frozen=True)
class ClassBatch:
    """Rows [B, T], padded on the right: ids, mask of what is no padding, types, counted, targets."""

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    counted: torch.Tensor
    targets: torch.Tensor

    def part(self, start: int, stop: int) -> "ClassBatch":
        """Rows from `start` to before `stop`."""
        return ClassBatch(*[part[start:stop] for part in self._parts])

    def to(self, device: torch.device) -> "ClassBatch":
        """The same on a device."""
        return ClassBatch(*[part.to(device) for part in self._parts])

    @property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.ids, self.mask, self.types, self.counted, self.targets


@dataclass(frozen=True)
class ClassRows:
    """Texts to train on. pad: the id that the model skips."""

    rows: Sequence[ClassRow]
    pad: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labelled(self) -> bool:
        """Whether every text has a label."""
        return all(any(t != IGNORED for t in row.targets) for row in self.rows)

    def batch(self, indices: Sequence[int]) -> ClassBatch:
        """Those rows, padded to the longest."""
        rows = [self.rows[i] for i in indices]
        longest = max(len(row.ids) for row in rows)

        def padded(name: str, value: float) -> np.ndarray[Any, Any]:
            return np.array([[*getattr(row, name), *[value] * (longest - len(row.ids))] for row in rows])

        mask = [[i < len(row.ids) for i in range(longest)] for row in rows]
        targets = padded("targets", IGNORED).astype(np.float32)
        parts = [padded("ids", self.pad), np.array(mask), padded("types", 0), padded("counted", False), targets]
        return ClassBatch(*[torch.from_numpy(part) for part in parts])


@dataclass(frozen=True)
class ClassData:
    """Texts to train on, texts that training never sees, and the SHA-256 of each file."""

    train: ClassRows
    held_out: ClassRows
    sha256: dict[str, str]


def load_class_data(config: DataConfig, codec: TextCodec | None, spec: EncoderSpec, pad: int) -> ClassData:
    """The texts of `config.files`, cut off at `length` tokens. Raises UsageError where there are none, or a label is
    not the model's."""
    rows: dict[bool, list[ClassRow]] = {False: [], True: []}
    seen: set[bytes] = set()
    for file in config.files:
        for number, (where, line) in enumerate(_lines(file)):
            if line.digest in seen or (config.limit is not None and number >= config.limit):
                continue
            seen.add(line.digest)
            rows[is_held_out(line.digest, config.held_out)] += _rows(line, where, codec, spec, config.length)
    if not rows[False]:
        raise UsageError("there is no text to train on", where=str(config.files[0]), mend=f"give {_FORM}")
    sha256 = {str(file): data_digest(file) for file in config.files}
    return ClassData(ClassRows(rows[False], pad), ClassRows(rows[True], pad), sha256)


def _lines(file: Path) -> Iterator[tuple[str, _Line]]:
    try:
        with open(file, encoding="utf-8") as stream:
            for number, text in enumerate(stream, 1):
                if text.strip():
                    where = f"{file}, line {number}"
                    yield where, _Line.model_validate_json(text)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot be read ({e})", where=str(file), mend=f"give {_FORM}") from e
    except ValidationError as e:
        raise UsageError(f"not a document: {e.errors()[0]['msg']}", where=where, mend=f"give {_FORM}") from e


def _rows(line: _Line, where: str, codec: TextCodec | None, spec: EncoderSpec, length: int) -> list[ClassRow]:
    length = min(length, spec.max_positions)
    if line.ids is not None:
        ids = line.ids[:length]
        if outside := [t for t in ids if not 0 <= t < spec.vocab]:
            raise UsageError(f"token id {outside[0]} is outside 0..{spec.vocab - 1}", where=where)
        return [_row(line, where, spec, ids, [0] * len(ids), [False] * len(ids))]
    texts = line.texts if line.texts is not None else [line.text] if line.text is not None else []
    if not texts:
        raise UsageError('not one of "text", "texts" and "ids"', where=where, mend=f"give {_FORM}")
    if codec is None:
        raise UsageError("the documents are text and the checkpoint has no tokenizer", where=where)
    found = []
    for text in texts:
        pair = () if line.pair is None else (line.pair,)
        encoded = codec.tokenizer.encode(text[: length * _CHARACTERS_PER_TOKEN], *pair)
        special = [bool(s) for s in encoded.special_tokens_mask[:length]]
        found.append(_row(line, where, spec, encoded.ids[:length], encoded.type_ids[:length], special))
    return found


def _row(line: _Line, where: str, spec: EncoderSpec, ids: list[int], types: list[int], special: list[bool]) -> ClassRow:
    types = types if spec.types > 1 else [0] * len(ids)
    if spec.per_token:
        counted = [not s for s in special]
        labels = (line.labels or [])[: len(ids)] if line.ids is not None else []
        if outside := [n for n in labels if n != IGNORED and not 0 <= n < len(spec.labels)]:
            raise UsageError(f"label {outside[0]} is not one of {len(spec.labels)}", where=where)
        return ClassRow(ids, types, counted, [*labels, *[IGNORED] * (len(ids) - len(labels))])
    counted = [i == 0 for i in range(len(ids))]
    return ClassRow(ids, types, counted, [_label(line.label, where, spec), *[IGNORED] * (len(ids) - 1)])


def _label(label: str | int | float | None, where: str, spec: EncoderSpec) -> float:
    if label is None:
        return IGNORED
    if spec.task == "regression" and not isinstance(label, str):
        return float(label)
    if isinstance(label, str) and label in spec.labels:
        return float(spec.labels.index(label))
    if isinstance(label, int) and 0 <= label < len(spec.labels):
        return float(label)
    mend = f"labels: {', '.join(spec.labels[:10])}"
    raise UsageError(f"{label!r} is no label of the model", where=where, mend=mend)
