"""A double of `cuda.bindings.runtime` that runs on the host, late, and refuses what CUDA leaves undefined.

Device memory is host memory full of NaN until it is written. Work put into a stream is done when somebody waits for it
and not before, so that whoever reads too early reads NaN. RuleBroken is raised where the real thing would misbehave.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from graphs_double import FAILED, OK, FakeGraphs, RuleBroken, Stream

SPOILED = 0xFF  # every float of these bytes is NaN


class FakeCuda(FakeGraphs):
    """The functions of the module, under their names. `refuse`: functions that report a failure; `calls`: how
    often each was called; `arguments`: with what, last."""

    cudaStreamNonBlocking, cudaEventDisableTiming, cudaHostAllocMapped, cudaHostAllocPortable = 1, 2, 2, 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self, gpus: int = 1) -> None:
        super().__init__()
        self.gpus, self.refuse = gpus, set[str]()
        self.calls: dict[str, int] = {}
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self.memory: dict[int, tuple[str, Any, int]] = {}  # kind, what keeps it, bytes; by address
        self.events: dict[int, tuple[int, int]] = {}  # stream, work that was queued before it

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found):
            return found
        self.calls[name] = self.calls.get(name, 0) + 1

        def call(*arguments: Any) -> Any:
            self.arguments[name] = arguments
            return (FAILED, None) if name in self.refuse else found(*arguments)

        return call

    # -- what it knows of itself --
    def cudaGetDeviceCount(self) -> Any:
        return (OK, self.gpus) if self.gpus else (35, None)

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return OK, SimpleNamespace(name=b"Double", major=8, minor=7, totalGlobalMem=1 << 33)

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13020

    def cudaRuntimeGetVersion(self) -> Any:
        return OK, 13020

    def cudaGetErrorName(self, status: int) -> Any:
        return OK, b"cudaErrorDouble"

    def cudaGetErrorString(self, status: int) -> Any:
        return OK, b"the double was told to fail"

    def cudaGetLastError(self) -> Any:
        return (OK,)

    # -- memory --
    def cudaMalloc(self, size: int) -> Any:
        return OK, self._allocate("device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        if not flags & self.cudaHostAllocMapped:
            raise RuleBroken("host memory that the GPU cannot see")
        return OK, self._allocate("host", size)

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> Any:
        return OK, address

    def cudaFree(self, address: int) -> Any:
        return self._free("device", address)

    def cudaFreeHost(self, address: int) -> Any:
        return self._free("host", address)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:
        self.inside(address, size, "device")
        return self._work(stream, lambda: ctypes.memset(address, value, size), "memset")

    def cudaMemset2DAsync(self, address: int, pitch: int, value: int, width: int, height: int, stream: int) -> Any:
        self.inside(address, pitch * (height - 1) + width, "device")

        def run() -> None:
            for line in range(height):
                ctypes.memset(address + line * pitch, value, width)

        return self._work(stream, run)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> Any:
        self.inside(to, size, "host" if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost else "device")
        if kind != self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.inside(source, size, "device")
        return self._work(stream, lambda: ctypes.memmove(to, source, size), "memcpy")

    def cudaMemcpy2DAsync(
        self, to: int, pitch: int, source: int, from_pitch: int, width: int, height: int, kind: int, stream: int
    ) -> Any:
        for address in (to, source):
            self.inside(address, pitch * (height - 1) + width, "device")

        def run() -> None:
            for line in range(height):
                ctypes.memmove(to + line * pitch, source + line * from_pitch, width)

        return self._work(stream, run)

    # -- streams and events --
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        if flags != self.cudaStreamNonBlocking:
            raise RuleBroken("a stream that waits for the default stream")
        handle = self._handle()
        self.streams[handle] = Stream()
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> Any:
        del self.streams[stream]
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return OK, self._handle()

    def cudaEventDestroy(self, event: int) -> Any:
        self.events.pop(event, None)
        return (OK,)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        self.not_capturing("an event is recorded")
        self.events[event] = (stream, len(self.stream(stream).queue))
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> Any:
        self.not_capturing("somebody waits")
        handle, count = self.events[event]
        queue = self.stream(handle).queue
        for _ in range(count):
            queue.pop(0)()
        self.events[event] = (handle, 0)
        return (OK,)

    # -- for the double of TensorRT --
    def inside(self, address: int, size: int, *kinds: str) -> None:
        """That these bytes are in one allocation of these kinds."""
        for start, (kind, _, length) in self.memory.items():
            if start <= address and address + size <= start + length and (not kinds or kind in kinds):
                return
        raise RuleBroken(f"{size} bytes at {address} are in no {' or '.join(kinds) or 'known'} memory")

    def _allocate(self, kind: str, size: int) -> int:
        self.not_capturing("memory is allocated")
        raw = np.full(size + 4096, SPOILED, np.uint8)
        address = -(-raw.ctypes.data // 4096) * 4096
        self.memory[address] = (kind, raw, size)
        return int(address)

    def _free(self, kind: str, address: int) -> Any:
        self.not_capturing("memory is freed")
        found, raw, _ = self.memory.pop(address)
        if found != kind:
            raise RuleBroken(f"{found} memory is freed as {kind}")
        raw[:] = SPOILED
        return (OK,)
