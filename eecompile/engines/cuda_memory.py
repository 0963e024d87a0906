"""Memory of a GPU's engines: rows in pinned host memory that the GPU reads itself, caches in the GPU's own.

Under unified addressing, memory from cudaHostAlloc has one address for both sides, which is checked. Blocks that
nothing refers to any more are kept for the next of their size, and go back to the driver when the whole memory goes: a
new session of a bundle wants the sizes of the one before, and no address is freed under a graph that has it.
"""

import ctypes
import math
import threading
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from eecompile.engines.cuda import CudaDevice
from eecompile.engines.interface import Array
from eecompile.errors import DeviceError

ALIGNMENT = 256  # bytes, of every address that an engine is given
SLAB = 1 << 20  # bytes that small blocks are cut from


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous array in a GPU's memory, or the part of one that some slots are. The host knows no more of it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = field(repr=False, default=None)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, slots: slice) -> "DeviceArray":
        """The slots of a slice without a step."""
        first, last, _ = slots.indices(self.shape[0])
        each = self.nbytes // max(self.shape[0], 1)
        return DeviceArray(self.address + first * each, (last - first, *self.shape[1:]), self.dtype, self.owner)


class Blocks:
    """Blocks of one kind of memory, aligned, of sizes rounded up to the alignment. Thread-safe.

    allocate: gives the address of so many bytes. free: takes them back, once this and all blocks are gone.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None]) -> None:
        self._allocate, self._left, self._next, self._lock = allocate, 0, 0, threading.Lock()
        self._free: dict[int, list[int]] = defaultdict(list)
        self._starts: list[int] = []
        self._ends: list[int] = []
        weakref.finalize(self, _free_all, self._starts, free).atexit = False

    def take(self, nbytes: int) -> tuple[int, int]:
        """The address and the size of a block of at least `nbytes`; what it holds is anybody's guess."""
        size = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        with self._lock:
            free = self._free[size]
            return (free.pop() if free else self._cut(size)), size

    def give(self, address: int, size: int) -> None:
        """Take a block back. Nothing waits here and no driver is called: it may run in the garbage collector."""
        self._free[size].append(address)

    def has(self, address: int, nbytes: int) -> bool:
        """Whether these bytes are in one of the allocations."""
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address + nbytes <= self._ends[at]

    def _cut(self, size: int) -> int:
        if size > SLAB:
            return self._more(size)
        if size > self._left:
            self._next, self._left = self._more(SLAB), SLAB
        address = self._next
        self._next, self._left = address + size, self._left - size
        return address

    def _more(self, size: int) -> int:
        start = int(self._allocate(size))
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._ends.insert(at, start + size)
        return start


def _free_all(starts: list[int], free: Callable[[int], None]) -> None:
    for start in starts:
        free(start)


class CudaMemory:
    """Rows that both sides see and caches that only the GPU does, each `length` rows long. Thread-safe."""

    def __init__(self, device: CudaDevice, length: int) -> None:
        self.device, self.length, self.gpu = device, length, device.facts().name
        self._host = Blocks(partial(_pinned, device), partial(device.retire, "cudaFreeHost"))
        self._own = Blocks(partial(device.call, "cudaMalloc"), partial(device.retire, "cudaFree"))

    def rows(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """As Memory.rows."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        address, size = self._host.take(count * kind.itemsize)
        raw = (ctypes.c_ubyte * size).from_address(address)  # every view refers to it in the end
        weakref.finalize(raw, self._host.give, address, size).atexit = False
        found: Array = np.ctypeslib.as_array(raw)[: count * kind.itemsize].view(kind).reshape(shape)
        found[...] = 0
        return found

    def constant(self, array: Array) -> DeviceArray:
        """As Memory.constant: a copy in the GPU's memory."""
        source = np.ascontiguousarray(array)
        placed = self.scratch(source.shape, source.dtype)
        kind = self.device.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        with self.device.ordered():
            self.device.call(
                "cudaMemcpyAsync", placed.address, source.ctypes.data, source.nbytes, kind, self.device.stream
            )
            self.device.wait()  # the source may go away
        return placed

    def cache(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """As Memory.cache."""
        found = self.scratch(shape, dtype)
        with self.device.ordered():
            self.device.call("cudaMemsetAsync", found.address, 0, found.nbytes, self.device.stream)
        return found

    def scratch(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """An array of the GPU's with anything in it."""
        kind = np.dtype(dtype)
        address, size = self._own.take(math.prod(shape) * kind.itemsize)
        owner = _Owner()
        weakref.finalize(owner, self._own.give, address, size).atexit = False
        return DeviceArray(address, tuple(shape), kind, owner)

    def clear(self, cache: DeviceArray, slot: int, rows: int) -> None:
        """As Memory.clear."""
        start, pitch, width, height = _slot(cache, slot, rows)
        if width:
            with self.device.ordered():
                self.device.call("cudaMemset2DAsync", start, pitch, 0, width, height, self.device.stream)

    def move(self, cache: DeviceArray, source: int, target: int, rows: int) -> None:
        """As Memory.move."""
        start, pitch, width, height = _slot(cache, source, rows)
        to = _slot(cache, target, rows)[0]
        kind = self.device.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if width:
            with self.device.ordered():
                self.device.call("cudaMemcpy2DAsync", to, pitch, start, pitch, width, height, kind, self.device.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy between addresses of the GPU's memory, in the stream, which is the caller's."""
        kind = self.device.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.device.call("cudaMemcpyAsync", target, source, nbytes, kind, self.device.stream)

    def address(self, buffer: Any, name: str) -> int:
        """Where passes find `buffer`. Raises ValueError for what is not of this memory, not aligned or not contiguous,
        of the tensor `name`."""
        is_array = isinstance(buffer, np.ndarray)
        address = int(buffer.ctypes.data if is_array else buffer.address)
        if is_array and not buffer.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous")
        if not (self._host if is_array else self._own).has(address, buffer.nbytes):
            raise ValueError(f"{name} is not in the memory of the engine that is to read it")
        if address % ALIGNMENT:
            raise ValueError(f"{name} begins at an address that is no multiple of {ALIGNMENT}")
        return address


class _Owner:
    """Of a block in the GPU's memory: when it goes, the block is free."""

    __slots__ = ("__weakref__",)


def _pinned(device: CudaDevice, size: int) -> int:
    flags = device.runtime.cudaHostAllocMapped | device.runtime.cudaHostAllocPortable
    address = int(device.call("cudaHostAlloc", size, flags))
    if int(device.call("cudaHostGetDevicePointer", address, 0)) != address:
        raise DeviceError("the GPU sees the host's memory at other addresses than the host does")
    return address


def _slot(cache: DeviceArray, slot: int, rows: int) -> tuple[int, int, int, int]:
    """Of the first `rows` rows of a slot of [slots, KV, T, ..]: address, bytes from head to head, bytes of the rows of
    one head, heads."""
    _, heads, length, *rest = cache.shape
    row = math.prod(rest) * cache.dtype.itemsize
    return cache.address + slot * heads * length * row, length * row, min(rows, length) * row, heads
