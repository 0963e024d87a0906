"""Hidden states of a frozen backbone, kept on disk so that many passes of training cost one pass of the backbone.

A cache is a directory of shards, each an .npy of rows [rows, boundaries, D] with an .npy of their labels beside it, and
`cache.json`. It is named after what it was computed from, written under another name and renamed when all of it is on
the disk: an interrupted one is never taken for whole. Shards are written, never mapped, so that a full disk is an error
and no crash; reading maps them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from eecompile import contract as c
from eecompile.bundle import disk
from eecompile.bundle.digest import canonical_json, file_sha256
from eecompile.errors import IntegrityError
from eecompile.schema import Name, Sha256, Strict

Float = NDArray[np.float32]
Ints = NDArray[np.int64]
StateType = Literal["float16", "float32"]

INDEX: Final = "cache.json"
SHARD_BYTES: Final = 64 << 20
_Count = Annotated[int, Field(ge=0, le=1 << 50)]


class Shard(Strict):
    """One pair of files. bytes: of the states' file."""

    rows: _Count
    bytes: _Count


class CacheIndex(Strict):
    """`cache.json`. shape: (boundaries, D). labels: int64 numbers kept with each row. `starts` is the SHA-256 of
    starts.npy, which has the first row of each document and the number of rows."""

    version: Literal[1] = 1
    facts: dict[Name, str | int | float | list[int] | None]
    dtype: StateType
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    labels: Annotated[int, Field(ge=0, le=16)]
    documents: _Count
    shards: Annotated[list[Shard], Field(max_length=1 << 20)]
    starts: Sha256

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class HiddenCache:
    """An open cache. Reading it is safe from several threads and processes."""

    path: Path
    index: CacheIndex

    @classmethod
    def open(cls, path: Path) -> "HiddenCache":
        """Open the cache at `path`. Raises IntegrityError where it is cut short or not a cache."""
        try:
            index = CacheIndex.model_validate_json((path / INDEX).read_bytes())
        except (OSError, ValidationError) as e:
            raise _broken(path, f"no readable {INDEX}") from e
        cache = cls(path, index)
        for number, shard in enumerate(index.shards):
            if not _has_size(path / _states(number), shard.bytes) or not (path / _labels(number)).is_file():
                raise _broken(path, f"shard {number} is missing or cut short")
        return cache

    @property
    def rows(self) -> int:
        """All rows."""
        return self.index.rows

    @cached_property
    def starts(self) -> Ints:
        """The first row of each document, and the number of rows [documents + 1]."""
        data = (self.path / "starts.npy").read_bytes()
        if hashlib.sha256(data).hexdigest() != self.index.starts:
            raise _broken(self.path, "starts.npy is not the one that was written")
        starts: Ints = np.load(self.path / "starts.npy", allow_pickle=False)
        return starts

    def take(self, rows: Ints) -> tuple[Float, Ints]:
        """Rows of these numbers [n]: states [n, boundaries, D] and labels [n, labels]."""
        states = np.empty((len(rows), *self.index.shape), np.float32)
        labels = np.empty((len(rows), self.index.labels), np.int64)
        shard = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shard):
            here = shard == number
            inside = rows[here] - (self._ends[number] - self.index.shards[number].rows)
            maps = self._maps[number]
            states[here], labels[here] = maps[0][inside], maps[1][inside]
        return states, labels

    def document(self, number: int) -> tuple[Float, Ints]:
        """The rows of one document: states [T, boundaries, D] and labels [T, labels]."""
        return self.take(np.arange(self.starts[number], self.starts[number + 1]))

    def chunks(self, count: int) -> Iterator[tuple[Float, Ints]]:
        """All rows in order, `count` at a time."""
        for start in range(0, self.rows, count):
            yield self.take(np.arange(start, min(start + count, self.rows)))

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum([shard.rows for shard in self.index.shards], dtype=np.int64)

    @cached_property
    def _maps(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        files = [(self.path / _states(n), self.path / _labels(n)) for n in range(len(self.index.shards))]
        return [(np.load(a, mmap_mode="r"), np.load(b, mmap_mode="r")) for a, b in files]


@dataclass
class CacheWriter:
    """Takes documents in order. Memory: a shard's rows, twice while it is written."""

    folder: Path
    dtype: StateType = "float16"
    shard_bytes: int = SHARD_BYTES
    shards: list[Shard] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    shape: tuple[int, int, int] | None = None
    _waiting: list[tuple[NDArray[Any], Ints]] = field(default_factory=list)
    _bytes: int = 0

    def add(self, states: Float, labels: Ints) -> None:
        """A document's rows: states [T, boundaries, D] and labels [T, labels]. Values beyond float16's are clipped."""
        if self.dtype == "float16":
            states = np.clip(states, -np.finfo(np.float16).max, np.finfo(np.float16).max)
        kept = states.astype(self.dtype)
        self.shape = (kept.shape[1], kept.shape[2], labels.shape[1])
        self.starts.append(self.starts[-1] + len(kept))
        self._waiting.append((kept, labels.astype(np.int64)))
        self._bytes += kept.nbytes
        if self._bytes >= self.shard_bytes:
            self._flush()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write what waits and the index. Raises OSError."""
        self._flush()
        boundaries, size, labels = self.shape or (1, 1, 0)
        _save(self.folder / "starts.npy", np.array(self.starts, np.int64))
        index = CacheIndex(
            facts=dict(facts), dtype=self.dtype, shape=(boundaries, size), labels=labels, shards=self.shards,
            documents=len(self.starts) - 1,
            starts=hashlib.sha256((self.folder / "starts.npy").read_bytes()).hexdigest(),
        )  # fmt: skip
        text = json.dumps(index.model_dump(mode="json"), indent=1)
        disk.write_atomically(self.folder / INDEX, text.encode() + b"\n", self.folder)

    def _flush(self) -> None:
        if not self._waiting:
            return
        states, labels = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._bytes = [], 0
        number = len(self.shards)
        _save(self.folder / _labels(number), labels)
        size = _save(self.folder / _states(number), states)
        self.shards.append(Shard(rows=len(states), bytes=size))


def cache_name(facts: Mapping[str, Any]) -> str:
    """The directory's name of a cache that these facts determine."""
    return hashlib.sha256(canonical_json(dict(facts))).hexdigest()[:24]


def checkpoint_facts(checkpoint: Path) -> dict[str, Any]:
    """What determines the states that a checkpoint computes: its config, weights and tokenizer by SHA-256."""
    names = ("config.json", "tokenizer.json", c.EARLY_EXIT, c.EARLY_EXIT_WEIGHTS)
    files = [*sorted(checkpoint.glob("*.safetensors")), *(checkpoint / name for name in names)]
    return {file.name: file_sha256(file.resolve()) for file in dict.fromkeys(files) if file.exists()}


def find_cache(root: Path, facts: Mapping[str, Any]) -> HiddenCache | None:
    """The whole cache of `facts` under `root`; a broken one is removed. None where there is none."""
    path = root / cache_name(facts)
    if not path.exists():
        return None
    try:
        return HiddenCache.open(path)
    except IntegrityError:
        shutil.rmtree(path)
        return None


@contextmanager
def writing_caches(
    root: Path, facts: Sequence[Mapping[str, Any]], dtype: StateType = "float16", shard_bytes: int = SHARD_BYTES
) -> Iterator[list[CacheWriter]]:
    """Writers for the caches of `facts`, which stand under `root` when the block ends; nothing does if it raises.

    What killed writers left is removed. Raises EECompileError where the disk is full or closed.
    """
    with disk.disk_faults(root):
        root.mkdir(parents=True, exist_ok=True)
        disk.remove_abandoned(root, ".")
        made = [root / disk.temporary_name(".") for _ in facts]
        try:
            for path in made:
                path.mkdir()
            writers = [CacheWriter(path, dtype, shard_bytes) for path in made]
            yield writers
            for writer, own in zip(writers, facts, strict=True):
                writer.finish(own)
                disk.replace_directory(writer.folder, root / cache_name(own))
        finally:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)


def _save(path: Path, array: NDArray[Any]) -> int:
    """Write an .npy to the disk; returns its bytes."""
    with open(path, "xb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _states(number: int) -> str:
    return f"states-{number:05d}.npy"


def _labels(number: int) -> str:
    return f"labels-{number:05d}.npy"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"the cache of hidden states is broken: {what}", where=str(path), mend="remove it")
