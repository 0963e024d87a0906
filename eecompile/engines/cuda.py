"""One GPU through the CUDA runtime: its stream, the wait for it, captured graphs, and errors in words.

Everything that a bundle's engines do on a GPU goes through one stream in order, so that they may share scratch memory,
and under one lock, so that an execution context has one thread at a time and nothing slips into another's capture.
Python packages: cuda-bindings, which is imported when a device is opened and not before.
"""

import importlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from eecompile.errors import DeviceError, MissingBackend

BINDINGS = "cuda.bindings.runtime"
Retired: TypeAlias = tuple[str, Any]  # a function that frees, and what


@dataclass(frozen=True)
class Gpu:
    """What a GPU is. sm: compute capability, as 87. driver, runtime: CUDA versions, as 12.6. memory: bytes."""

    name: str
    sm: int
    driver: str
    runtime: str
    memory: int


class CudaDevice:
    """A GPU, a stream on it, and what waits for that stream. Thread-safe.

    Raises MissingBackend where there are no bindings, no driver or no GPU; DeviceError where a call fails.
    """

    def __init__(self) -> None:
        self.runtime, self._lock = load_bindings(), threading.Lock()
        self._retired: list[Retired] = []
        self._check_present()
        self.stream = self.call("cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking)
        self._done = self.call("cudaEventCreateWithFlags", self.runtime.cudaEventDisableTiming)
        own = [("cudaEventDestroy", self._done), ("cudaStreamDestroy", self.stream)]
        weakref.finalize(self, _drain, self.runtime, self._retired, own).atexit = False

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; returns what it returns beside its status, None for nothing."""
        status, *found = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise DeviceError(f"CUDA: {name} failed: {self._words(status)}", where="the GPU")
        return found[0] if len(found) == 1 else tuple(found) or None

    @contextmanager
    def ordered(self) -> Iterator[int]:
        """Hold the stream alone; the value is its handle. Not to be entered twice by a thread."""
        with self._lock:
            if self._retired:
                _drain(self.runtime, self._retired, [])
            yield int(self.stream)

    def wait(self) -> None:
        """Wait for everything in the stream, spinning: what follows is a decision that the host is to act on."""
        self.call("cudaEventRecord", self._done, self.stream)
        self.call("cudaEventSynchronize", self._done)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts into the stream as a graph that can be launched again; nothing runs.

        Raises DeviceError where something in it cannot be captured; the stream is usable either way.
        """
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        graph = self.call("cudaStreamEndCapture", self.stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Put a captured graph into the stream."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def retire(self, name: str, handle: Any) -> None:
        """Free or destroy something by the function `name`, later: this may be called anywhere, the garbage collector
        included, and a capture may be under way."""
        self._retired.append((name, handle))

    def facts(self) -> Gpu:
        """What this GPU is."""
        found = self.call("cudaGetDeviceProperties", 0)
        driver, runtime = (self.call(f"cuda{part}GetVersion") for part in ("Driver", "Runtime"))
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        sm, memory = int(found.major) * 10 + int(found.minor), int(found.totalGlobalMem)
        return Gpu(name, sm, _version(driver), _version(runtime), memory)

    def _abandon(self) -> None:
        """End a capture that failed; its status was the cause's already."""
        _, graph = self.runtime.cudaStreamEndCapture(self.stream)
        if int(graph or 0):
            self.runtime.cudaGraphDestroy(graph)
        self.runtime.cudaGetLastError()

    def _check_present(self) -> None:
        status, count = self.runtime.cudaGetDeviceCount()
        if status != self.runtime.cudaError_t.cudaSuccess or not count:
            mend = "install the vendor's driver, or use the back end onnxruntime"
            raise MissingBackend(f"there is no GPU here ({self._words(status)})", mend=mend)

    def _words(self, status: Any) -> str:
        texts = [self.runtime.cudaGetErrorName(status)[1], self.runtime.cudaGetErrorString(status)[1]]
        return ": ".join(t.decode() if isinstance(t, bytes) else str(t) for t in texts)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _drain(runtime: Any, retired: list[Retired], last: Sequence[Retired]) -> None:
    """Free and destroy; what fails here has failed before, or belongs to a driver that is gone."""
    while retired:
        name, handle = retired.pop()
        getattr(runtime, name)(handle)
    for name, handle in last:
        getattr(runtime, name)(handle)


def load_bindings() -> Any:
    """The module cuda.bindings.runtime. Raises MissingBackend where it is not installed."""
    try:
        return importlib.import_module(BINDINGS)
    except ImportError as e:
        raise MissingBackend(
            f"the CUDA back ends need the Python package cuda-bindings ({e})",
            mend="pip install 'eecompile[tensorrt]', or use the back end onnxruntime",
        ) from e
