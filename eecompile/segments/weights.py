"""External weight files of a bundle, written one tensor at a time and referred to from any graph.

A tensor is written once under its name; a second graph that asks for the name (the tied head, the uncut reference
graph) gets a reference to the same bytes. At most one tensor, in its final dtype, is in memory.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from eecompile.errors import UsageError

ALIGNMENT = 64  # bytes; external data that is aligned can be used in place

_ITEM_TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weight file. `item_type` is an onnx.TensorProto data type; int4 packs two values a byte."""

    file: str
    offset: int
    bytes: int
    item_type: int
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Values:
    """A tensor's content: `data` as stored; `dims` differs from its shape where values are packed."""

    data: NDArray[Any]
    item_type: int
    dims: tuple[int, ...]

    @classmethod
    def of(cls, data: NDArray[Any]) -> "Values":
        """A tensor that is stored as it is."""
        return cls(data, _ITEM_TYPES[data.dtype.name], data.shape)

    @classmethod
    def narrowed(cls, data: NDArray[np.float32], item_type: int, name: str) -> "Values":
        """float32 `data` in a smaller floating-point type. Raises UsageError where it does not hold them."""
        with np.errstate(over="ignore"):
            narrow = data.astype(onnx.helper.tensor_dtype_to_np_dtype(item_type))
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise UsageError(
                f"{name} has values that are not finite or too large for the type that the target computes in",
                mend="build with --compute bfloat16, or with --precision fp32 where the target has it",
            )
        return cls(narrow, item_type, data.shape)


class WeightBook:
    """Writes weight files into a directory and remembers where each named tensor lies.

    `hashes` has the SHA-256 of every finished file, by name; after `close` only other files can be written. Not
    thread-safe.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stored: dict[str, StoredTensor] = {}
        self.hashes: dict[str, str] = {}
        self._open: dict[str, tuple[Any, Any]] = {}

    def tensor(self, file: str, name: str, make: Callable[[], Values]) -> StoredTensor:
        """The tensor called `name`, made and appended to `file` if no graph has asked for it before."""
        if name not in self.stored:
            self.stored[name] = self._append(file, make())
        return self.stored[name]

    def read(self, name: str) -> NDArray[np.float32]:
        """The stored float32 tensor called `name`."""
        stored = self.stored[name]
        if stored.file in self._open:
            self._open[stored.file][0].flush()
        values = np.fromfile(self.directory / stored.file, np.float32, stored.bytes // 4, offset=stored.offset)
        return values.reshape(stored.dims)

    def close(self) -> None:
        """Finish every file that is open."""
        for file, (stream, sha) in self._open.items():
            stream.close()
            self.hashes[file] = sha.hexdigest()
        self._open.clear()

    def _append(self, file: str, values: Values) -> StoredTensor:
        stream, sha = self._stream(file)
        padding = b"\0" * (-stream.tell() % ALIGNMENT)
        stream.write(padding)
        sha.update(padding)
        offset = stream.tell()
        data = np.ascontiguousarray(values.data).view(np.uint8).reshape(-1).data
        stream.write(data)
        sha.update(data)
        return StoredTensor(file, offset, data.nbytes, values.item_type, values.dims)

    def _stream(self, file: str) -> tuple[Any, Any]:
        if file in self.hashes:
            raise RuntimeError(f"{file} is finished")
        if file not in self._open:
            self._open[file] = (open(self.directory / file, "wb"), hashlib.sha256())  # noqa: SIM115
        return self._open[file]


def proto_from_stored(name: str, stored: StoredTensor, prefix: str = "") -> onnx.TensorProto:
    """An initialiser whose data is external; `prefix` leads from the graph's directory to the weight files."""
    proto = onnx.TensorProto(name=name, data_type=stored.item_type, dims=stored.dims)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", prefix + stored.file), ("offset", stored.offset), ("length", stored.bytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto
