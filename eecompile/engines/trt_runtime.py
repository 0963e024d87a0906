"""TensorRT engines at run time: contexts on shared scratch memory, one stream, a CUDA graph for each pass that repeats.

A pass runs first on the context that its engine keeps for the profile. Called again it gets a context of its own, since
a captured graph is only good for as long as nothing changes the context that it was captured from; there it runs once
more and is waited for, as TensorRT asks before a capture, and is captured. From then on a call is one graph launch and
the wait for its event, after which the host reads rows and decisions where the GPU wrote them, in pinned memory.

An engine that cannot be captured is enqueued each time; `TrtRuntime.uncaptured` says which and why.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eecompile import contract as c
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.cuda_memory import ALIGNMENT, CudaMemory, DeviceArray
from eecompile.engines.interface import Array, Buffers, shape_of, sizes_by_symbol
from eecompile.engines.packages import load_module
from eecompile.engines.refit import refit_engine
from eecompile.errors import DeviceError, IntegrityError, MissingBackend, UsageError
from eecompile.schema import GraphInfo, TensorInfo

Shapes = Mapping[str, tuple[int, ...]]
Copy = tuple[int, int, int]  # to, from, bytes
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}
DYNAMIC = -1


class TrtRuntime:
    """What the engines of a bundle share: a GPU, its memory, TensorRT's runtime, scratch memory, and a place for what
    nobody reads.

    trt: the module. length: T of every cache. Load every engine before the first pass is bound.
    """

    def __init__(self, trt: Any, device: CudaDevice, length: int) -> None:
        self.trt, self.device, self.memory = trt, device, CudaMemory(device, length)
        self.uncaptured: dict[str, str] = {}
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._needs = {"scratch": 1, "loose": 1}
        self._blocks: dict[str, DeviceArray] = {}

    def load(
        self, path: Path, info: GraphInfo, *, copied: Mapping[str, str] | None = None, weights: Path | None = None
    ) -> "TrtEngine":
        """The engine at `path`, which was built from graph `info` and checked against its record.

        copied: of outputs that are no update in place, the inputs that they are to replace. weights: the ONNX file
        whose weights are put into an engine without. Raises IntegrityError.
        """
        try:
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as e:
            raise IntegrityError(f"the engine cannot be read ({e})", where=str(path)) from e
        if engine is None:
            raise IntegrityError("TensorRT cannot load this engine", where=str(path), mend=_BUILD)
        if weights is not None:
            refit_engine(self.trt, engine, weights, self._logger)
        found = TrtEngine(self, engine, info, path, copied or {})
        self._need("scratch", int(engine.device_memory_size_v2))
        self._need("loose", found.loose_bytes)
        return found

    def block(self, kind: str) -> DeviceArray:
        """The memory that all engines use in turn: "scratch", or "loose", for outputs that are not read there."""
        if kind not in self._blocks:
            self._blocks[kind] = self.memory.scratch((self._needs[kind],), np.uint8)
        return self._blocks[kind]

    def _need(self, kind: str, nbytes: int) -> None:
        if kind in self._blocks:
            raise ValueError("engines are loaded before any is bound: they share what the largest needs")
        self._needs[kind] = max(self._needs[kind], nbytes)

    def context(self, engine: Any, profile: int) -> Any:
        """A new context of an engine for a profile, on the shared scratch memory. The stream is the caller's."""
        scratch = self.block("scratch")
        context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError("TensorRT cannot create an execution context", mend="free memory of the GPU")
        context.set_device_memory(scratch.address, scratch.nbytes)
        if not context.set_optimization_profile_async(profile, int(self.device.stream)):
            raise DeviceError(f"TensorRT refuses optimisation profile {profile}")
        return context


class TrtEngine:
    """One engine. Thread-safe: its passes take turns on the device's stream.

    Attributes as of Engine; `profiles` are its optimisation profiles: by input the least and the largest shape.
    """

    def __init__(self, shared: TrtRuntime, engine: Any, info: GraphInfo, path: Path, copied: Mapping[str, str]) -> None:
        self.info, self.memory, self.shared, self.engine = info, shared.memory, shared, engine
        self._path, self._copied = path, copied
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        self.inputs = [t for t in info.inputs if t.name in names]  # a parser may drop what no node reads
        self._check_tensors(names)
        self.profiles = [self._profile(i) for i in range(engine.num_optimization_profiles)]
        self._contexts: dict[int, Any] = {}
        self._loose, self.loose_bytes = self._loose_outputs()

    def bind(self, buffers: Buffers) -> "TrtPass":
        """As Engine.bind. Raises UsageError for a pass that no profile holds."""
        shapes = {t.name: tuple(buffers[t.name].shape) for t in self.info.inputs}
        sizes = sizes_by_symbol(self.info, shapes)
        profile = self._profile_of(shapes)
        tensors = [*self.inputs, *(t for t in self.info.outputs if t.name in buffers)]
        addresses = {t.name: self._address(t, buffers[t.name], sizes) for t in tensors}
        copies = []
        for t in self.info.outputs:
            if t.name in self._copied or t.name not in buffers:
                addresses[t.name] = self.shared.block("loose").address + self._loose[t.name]
            if t.name in self._copied:
                source = self._copied[t.name]
                copies.append((addresses[source], addresses[t.name], int(buffers[source].nbytes)))
        return TrtPass(self, profile, {t.name: shapes[t.name] for t in self.inputs}, addresses, copies, dict(buffers))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As Engine.run."""
        sizes = sizes_by_symbol(self.info, {name: array.shape for name, array in inputs.items()})
        given, out = (
            {t.name: self.memory.rows(shape_of(t.shape, sizes), t.dtype) for t in tensors}
            for tensors in (self.info.inputs, self.info.outputs)
        )
        for name, array in given.items():
            array[...] = inputs[name]
        self.bind({**given, **out})()
        return {name: array.copy() for name, array in out.items()}

    def shared_context(self, profile: int) -> Any:
        """The context for passes of a profile that come once. The stream is the caller's."""
        if profile not in self._contexts:
            self._contexts[profile] = self.shared.context(self.engine, profile)
        return self._contexts[profile]

    def _address(self, tensor: TensorInfo, buffer: Any, sizes: Mapping[str, int]) -> int:
        if tuple(buffer.shape) != shape_of(tensor.shape, sizes):
            raise ValueError(f"{tensor.name} is bound to {buffer.shape}, not {shape_of(tensor.shape, sizes)}")
        if buffer.dtype != np.dtype(tensor.dtype):
            raise ValueError(f"{tensor.name} is {tensor.dtype} and is bound to {buffer.dtype}")
        return self.memory.address(buffer, tensor.name)

    def _loose_outputs(self) -> tuple[dict[str, int], int]:
        """Where outputs lie in the block for those that are not read there, and its size: TensorRT has to be given a
        place for each. All at once, since a later layer may read what an earlier one has put out."""
        most: dict[str, int] = {}
        for profile in self.profiles:
            for symbol, size in sizes_by_symbol(self.info, {n: high for n, (_, high) in profile.items()}).items():
                most[symbol] = max(size, most.get(symbol, 0))
        places, end = {}, 0
        for t in self.info.outputs:
            if t.name in self._copied or c.LENGTH not in t.shape:
                nbytes = math.prod(shape_of(t.shape, most)) * np.dtype(t.dtype).itemsize
                places[t.name], end = end, end + -(-nbytes // ALIGNMENT) * ALIGNMENT
        return places, end

    def _profile_of(self, shapes: Shapes) -> int:
        """The first profile that these shapes are inside of."""
        for i, profile in enumerate(self.profiles):
            if all(_inside(shapes[name], *profile[name]) for name in profile):
                return i
        found = ", ".join(f"{t.name} {list(shapes[t.name])}" for t in self.info.inputs[:2])
        raise UsageError(
            f"no optimisation profile of the engine takes {found}", where=str(self._path),
            mend="build the bundle again for as many rows, slots and tokens",
        )  # fmt: skip

    def _profile(self, index: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        found = {}
        for t in self.inputs:
            shape = tuple(self.engine.get_tensor_shape(t.name))
            if DYNAMIC in shape:
                least, _, most = self.engine.get_tensor_profile_shape(t.name, index)
                found[t.name] = (tuple(least), tuple(most))
            else:
                found[t.name] = (shape, shape)
        return found

    def _check_tensors(self, names: set[str]) -> None:
        """That the engine's tensors are the graph's."""
        known = {t.name: t for t in (*self.info.inputs, *self.info.outputs)}
        fault = next((f"{name!r}, which its graph has not" for name in sorted(names - set(known))), None)
        fault = fault or next((f"no {t.name!r}" for t in self.info.outputs if t.name not in names), None)
        for name in sorted(names & set(known)):
            wanted = getattr(self.shared.trt.DataType, _DTYPES[known[name].dtype])
            if self.engine.get_tensor_dtype(name) != wanted:
                fault = fault or f"{name!r} of another type than {known[name].dtype}"
        if fault:
            raise IntegrityError(f"the engine has {fault}", where=str(self._path), mend=_BUILD)


class TrtPass:
    """A pass of an engine over fixed addresses; see the module. Not thread-safe by itself."""

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_context",
        "_copies",
        "_engine",
        "_graph",
        "_keep",
        "_profile",
        "_ran",
        "_shapes",
    )

    def __init__(
        self, engine: TrtEngine, profile: int, shapes: Shapes, addresses: Mapping[str, int], copies: Sequence[Copy],
        keep: Buffers,
    ) -> None:  # fmt: skip
        self._engine, self._profile, self._shapes, self._addresses = engine, profile, shapes, addresses
        self._copies, self._keep, self._ran = copies, keep, False
        self._context: Any = None
        self._graph: Any = None

    def __call__(self) -> None:
        device = self._engine.shared.device
        with device.ordered():
            if self._graph is not None:
                device.launch(self._graph)
            elif self._context is not None:
                self._enqueue(self._context)
            elif not self._ran:
                self._enqueue(self._prepared(self._engine.shared_context(self._profile)))
                self._ran = True
            else:
                self._context = self._prepared(self._engine.shared.context(self._engine.engine, self._profile))
                self._enqueue(self._context)
                device.wait()
                self._capture(device)
                return
            device.wait()

    def warm(self) -> None:
        """Put a run into the stream that makes `enqueue` fit for a capture, once it was waited for; nothing, where one
        was before. The stream is the caller's."""
        if self._context is None:
            self._context = self._prepared(self._engine.shared.context(self._engine.engine, self._profile))
            self._enqueue(self._context)

    def enqueue(self) -> None:
        """Put a run into the stream, which is the caller's, and may be capturing: for a pass that was made warm and is
        never called."""
        self._enqueue(self._context)

    def _capture(self, device: CudaDevice) -> None:
        try:
            self._graph = device.capture(lambda: self._enqueue(self._context))
        except DeviceError as e:
            self._engine.shared.uncaptured[self._engine.info.path] = str(e)
        else:
            weakref.finalize(self, device.retire, "cudaGraphExecDestroy", self._graph).atexit = False

    def _prepared(self, context: Any) -> Any:
        """Set every shape and address of this pass."""
        refused = [name for name, shape in self._shapes.items() if not context.set_input_shape(name, shape)]
        refused += [name for name, at in self._addresses.items() if not context.set_tensor_address(name, at)]
        if refused:
            raise DeviceError(f"TensorRT refuses the shape or address of {refused[0]}", where=self._engine.info.path)
        return context

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._engine.shared.device.stream)):
            raise DeviceError("TensorRT could not enqueue a pass", where=self._engine.info.path)
        for target, source, nbytes in self._copies:
            self._engine.memory.copy(target, source, nbytes)


_BUILD = "build the engines on this machine with `eecompile engines BUNDLE`"


def load_tensorrt(module: str = "tensorrt") -> Any:
    """The package "tensorrt", 10.3 or later, or "tensorrt_rtx". Raises MissingBackend where it is not installed."""
    found = load_module(module)
    if module == "tensorrt" and tuple(int(part) for part in found.__version__.split(".")[:2]) < (10, 3):
        what = f"TensorRT {found.__version__} is older than 10.3"
        raise MissingBackend(what, mend="install a later one; on a Jetson that is JetPack 6.1")
    return found


def _inside(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    same_rank = len(least) == len(shape) == len(most)
    return same_rank and all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
