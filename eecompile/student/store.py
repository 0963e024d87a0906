"""Weights on disk: a checkpoint's safetensors files, read a few rows at a time.

The files are read with pread, never mapped or unpickled: a mapped checkpoint stays resident, and a build's memory
is to stay near one segment whatever the checkpoint's size. The header is parsed here (8 bytes of length, then JSON)
because the safetensors package gives no access without a map.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError

DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100 << 20
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor's bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class View:
    """A weight that a checkpoint keeps in another form: outputs of its tensor `tensor`, which has shape `shape` there.

    runs: the outputs in order, as runs of consecutive ones. transposed: the tensor is [in, out]. add: to every value.
    """

    tensor: str
    shape: tuple[int, ...]
    runs: tuple[range, ...]
    transposed: bool = False
    add: float = 0.0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The weight's own shape: [out, in], or [out] of a vector."""
        outputs = sum(len(run) for run in self.runs)
        return (outputs, self.shape[0]) if self.transposed else (outputs, *self.shape[1:])


@dataclass(frozen=True)
class WeightStore:
    """A checkpoint's weights by name: its tensors, and `views` of them, which go first. Every read returns float32."""

    directory: Path
    tensors: Mapping[str, TensorLocation]
    views: Mapping[str, View] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> "WeightStore":
        """Read the headers of the (possibly sharded) safetensors files in `directory`."""
        tensors: dict[str, TensorLocation] = {}
        for file in _files(directory):
            tensors |= read_header(file)
        return cls(directory, tensors)

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UsageError unless every named tensor is there with its shape and a dtype we read."""
        missing = [name for name in shapes if name not in self.tensors]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UsageError(
                f"the checkpoint lacks {', '.join(missing[:3])}{more}",
                where=str(self.directory),
                mend="download every shard, or check that config.json belongs to these weights",
            )
        for name, shape in shapes.items():
            found = self.tensors[name]
            if found.shape != shape:
                raise UsageError(
                    f"{name} has shape {list(found.shape)}, config.json asks for {list(shape)}",
                    where=str(found.file),
                )
            if found.dtype not in DTYPES:
                raise UsageError(
                    f"{name} has dtype {found.dtype}",
                    where=str(found.file),
                    mend=f"save the weights as one of {', '.join(DTYPES)}",
                )

    def with_views(self, views: Mapping[str, View]) -> "WeightStore":
        """The same checkpoint with weights that are parts of its tensors."""
        return replace(self, views=views)

    def with_prefix(self, prefix: str, name: str) -> "WeightStore":
        """The same checkpoint where tensors may be called with `prefix` too, if only so `name` is found: checkpoints of
        a model without its head leave it out."""
        if name in self.tensors or name.removeprefix(prefix) not in self.tensors:
            return self
        return replace(self, tensors={**self.tensors, **{prefix + n: t for n, t in self.tensors.items()}})

    def shape(self, name: str) -> tuple[int, ...]:
        """The weight's shape."""
        return self.views[name].weight_shape if name in self.views else self.tensors[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """The whole weight, float32, in its own shape."""
        out = np.empty(self.shape(name), np.float32)
        for start, rows in self.chunks(name):
            out[start : start + len(rows)] = rows
        return out

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, rows as float32), about 16 MiB at a time, so that memory stays bounded."""
        view = self.views.get(name)
        if view is None:
            shape = self.tensors[name].shape
            view = View(name, shape, (range(shape[0]),))
        location, start = self.tensors[view.tensor], 0
        read = _columns if view.transposed else _rows
        with open(location.file, "rb", buffering=0) as file:
            for run in view.runs:
                for rows in read(file.fileno(), view.tensor, location, run):
                    yield start, rows + np.float32(view.add) if view.add else rows
                    start += len(rows)


def _rows(file: int, name: str, location: TensorLocation, run: range) -> Iterator[NDArray[np.float32]]:
    """The rows `run` of a tensor, some at a time."""
    dtype = np.dtype(DTYPES[location.dtype])
    row = int(np.prod(location.shape[1:], dtype=np.int64)) * dtype.itemsize
    step = max(1, _CHUNK_BYTES // max(1, row))
    for start in range(run.start, run.stop, step):
        count = min(step, run.stop - start)
        data = _values(file, name, location, start * row, count * row, dtype)
        yield data.reshape(count, *location.shape[1:])


def _columns(file: int, name: str, location: TensorLocation, run: range) -> Iterator[NDArray[np.float32]]:
    """The columns `run` of a matrix as rows, some at a time; each column of a row of the file costs a read."""
    dtype = np.dtype(DTYPES[location.dtype])
    inputs, width = location.shape
    step = max(1, _CHUNK_BYTES // max(1, inputs * dtype.itemsize))
    for start in range(run.start, run.stop, step):
        count = min(step, run.stop - start)
        out = np.empty((inputs, count), np.float32)
        for i in range(inputs):
            first = (i * width + start) * dtype.itemsize
            out[i] = _values(file, name, location, first, count * dtype.itemsize, dtype)
        yield out.T


def _values(
    file: int, name: str, location: TensorLocation, first: int, count: int, dtype: np.dtype[Any]
) -> NDArray[np.float32]:
    """`count` bytes of a tensor from its byte `first` on, as float32."""
    data = _pread(file, count, location.offset + first)
    if len(data) != count:
        raise UsageError(f"{name} is cut short", where=str(location.file), mend="download the file again")
    return np.frombuffer(data, dtype).astype(np.float32, copy=False)


def read_header(file: Path) -> dict[str, TensorLocation]:
    """Parse one safetensors file's header and check it against the file's size."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_MAX_HEADER, size - 8):
                raise ValueError("the header's length does not fit the file")
            header = json.loads(stream.read(length))
        begin = 8 + length
        tensors = {n: _location(file, begin, size, entry) for n, entry in header.items() if n != "__metadata__"}
    except FileNotFoundError as e:
        raise UsageError("the weight file is missing", where=str(file), mend="download every shard") from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UsageError(f"not a readable safetensors file: {e}", where=str(file), mend="download it again") from e
    return tensors


def _location(file: Path, begin: int, size: int, entry: Mapping[str, Any]) -> TensorLocation:
    first, last = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    location = TensorLocation(file, str(entry["dtype"]), shape, begin + first, last - first)
    if first < 0 or last < first or begin + last > size or any(n < 0 for n in shape):
        raise ValueError("a tensor lies outside the file; it may be cut short")
    dtype = DTYPES.get(location.dtype)
    if dtype is not None and math.prod(shape) * np.dtype(dtype).itemsize != location.bytes:
        raise ValueError("a tensor's shape and size disagree")
    return location


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            inside = all(name and Path(name).name == name for name in names)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
            raise UsageError("the shard index is not readable", where=str(index), mend="download it again") from e
        if not inside:
            raise UsageError("the shard index names a file outside the checkpoint", where=str(index))
        return [directory / name for name in names]
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    hint = "convert it with save_pretrained(..., safe_serialization=True)" if any(directory.glob("*.bin")) else ""
    raise UsageError(
        f"no {SINGLE} and no {INDEX} here",
        where=str(directory),
        mend=hint or "give a Hugging Face directory with safetensors weights, or a .gguf file",
    )


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    parts = []
    while count > 0:
        part = os.pread(descriptor, min(count, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
