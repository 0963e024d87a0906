"""What the runtime asks of a back end: engines that bind graphs to buffers, and a memory that those buffers lie in.

The host writes and reads the small tensors of a pass (rows, positions, decisions) and never touches caches. So a back
end says where each kind lies: ONNX Runtime on the CPU keeps both in numpy; a GPU keeps rows in host memory that it can
read itself, and caches in its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from eecompile.schema import GraphInfo

Array: TypeAlias = NDArray[Any]
Cache: TypeAlias = Any  # numpy or a device's: has `shape`, `dtype` and slices of slots, and is for its memory alone
Buffers: TypeAlias = Mapping[str, Any]  # an Array, or what a memory gave as a Cache or a constant


class Pass(Protocol):
    """A graph bound to buffers of fixed shapes and addresses. Calling it runs one pass; when it returns, the buffers
    hold the result. Not thread-safe: it belongs to one thread at a time."""

    def __call__(self) -> None: ...


class Memory(Protocol):
    """Where the buffers of an engine's passes lie. Thread-safe.

    length: T of every cache, whatever it holds; 0 where caches grow with what is in them, and are numpy arrays then.
    gpu: the name of the GPU that passes run on, empty where they run on the processor.
    """

    @property
    def length(self) -> int: ...

    @property
    def gpu(self) -> str: ...

    def rows(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Zeros that both the host and passes read and write. They live as long as a view of them."""

    def constant(self, array: Array) -> Any:
        """The values of `array` where passes read them fast; not to be changed."""

    def cache(self, shape: Sequence[int], dtype: DTypeLike) -> Cache:
        """Zeros [slots, KV, T, ..] that passes alone read and write."""

    def clear(self, cache: Cache, slot: int, rows: int) -> None:
        """Make the first `rows` rows of a slot zeros again."""

    def move(self, cache: Cache, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of slot `source` over those of `target`."""


class Engine(Protocol):
    """A loaded graph. Thread-safe: passes of several threads may be bound and run at once."""

    @property
    def info(self) -> GraphInfo: ...

    @property
    def memory(self) -> Memory: ...

    def bind(self, buffers: Buffers) -> Pass:
        """Bind buffers of `memory` by tensor name; outputs without a buffer are not computed into anything."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass over `inputs` by tensor name, of the host's memory; the outputs are new arrays."""


class HostMemory:
    """The process's own memory, through numpy: engines read and write the very arrays."""

    length, gpu = 0, ""

    def rows(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """As Memory.rows."""
        return np.zeros(shape, dtype)

    def constant(self, array: Array) -> Array:
        """The array itself."""
        return array

    def cache(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """As Memory.cache."""
        return np.zeros(shape, dtype)

    def clear(self, cache: Array, slot: int, rows: int) -> None:
        """As Memory.clear."""
        cache[slot, :, :rows] = 0

    def move(self, cache: Array, source: int, target: int, rows: int) -> None:
        """As Memory.move."""
        cache[target, :, :rows] = cache[source, :, :rows]


HOST = HostMemory()


def sizes_by_symbol(info: GraphInfo, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the symbols in the inputs of a graph stand for, where these inputs have these shapes by name."""
    return {
        symbol: int(size)
        for tensor in info.inputs
        if tensor.name in shapes
        for symbol, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(symbol, str)
    }


def shape_of(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with its symbols replaced."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)
