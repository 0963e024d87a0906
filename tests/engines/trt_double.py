"""A double of `tensorrt` whose engines are ONNX files that ONNX Runtime runs, and which enforces TensorRT's rules.

A "plan" is JSON: the ONNX file, and by profile the least, tuned and largest shape of every input. What TensorRT leaves
undefined raises RuleBroken: shapes or addresses that are not set, misaligned or foreign memory, a context that two
threads use or that changes while its work is under way, a capture without a run before it, a graph whose context was
changed since.
"""

import json
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tiny
from cuda_double import SPOILED, FakeCuda
from graphs_double import RuleBroken

from eecompile import contract as c
from eecompile.engines.ort import ELEMENT
from eecompile.segments.decision import decision_function

Shape = tuple[int, ...]
ALIGNED = 256
_NUMPY = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}  # fmt: skip
_KINDS = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}


class FakeTensorRT:
    """The module. `deserialised`: names of the ONNX files of engines so far. capturable: whether passes can be
    captured. node_kind: what kind of nodes a capture makes. pause: waited for inside of every enqueue, to let another
    thread in."""

    def __init__(self, cuda: FakeCuda, version: str = "10.16.2") -> None:
        self.__version__, self.cuda = version, cuda
        self.deserialised: list[str] = []
        self.capturable, self.node_kind = True, "kernel"
        self.pause: threading.Barrier | None = None
        self.contexts: list[weakref.ref[Context]] = []
        self.DataType = SimpleNamespace(**{kind: kind for kind in _KINDS.values()})
        self.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static", USER_MANAGED="user")
        self.Refitter = lambda engine, logger: SimpleNamespace(
            engine=engine, refit_cuda_engine=engine.refit, get_missing_weights=lambda: []
        )
        self.OnnxParserRefitter = lambda refitter, logger: SimpleNamespace(refit_from_file=refitter.engine.weights_from)
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, least: None})

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def _deserialise(self, data: bytes) -> "Engine | None":
        if not data.startswith(b"{"):
            return None
        plan = json.loads(data)
        self.deserialised.append(Path(plan["onnx"]).name)
        return Engine(self, plan)


class Engine:
    """ICudaEngine."""

    def __init__(self, module: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.module, self.lacks_weights, self._weights = module, bool(plan["stripped"]), ""
        self._onnx = plan["onnx"]
        tiny.ort_threads()
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        folder = str(Path(plan["onnx"]).parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        self.session = ort.InferenceSession(_model(plan["onnx"]), options, providers=["CPUExecutionProvider"])
        self.inputs = {t.name: t for t in self.session.get_inputs()}
        self.outputs = {t.name: t for t in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.profiles: list[dict[str, list[Shape]]] = [
            {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()}
            for profile in plan["profiles"]
        ]
        self.num_io_tensors, self.num_optimization_profiles = len(self._names), len(self.profiles)
        self.device_memory_size_v2 = 1000 + 300 * len(self._names)

    def weights_from(self, path: str) -> bool:
        self._weights = path
        return path == self._onnx

    def refit(self) -> bool:
        self.lacks_weights = not self._weights
        return not self.lacks_weights

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return _KINDS[np.dtype(self.dtype(name)).name]

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        if name not in self.inputs or -1 not in self.get_tensor_shape(name):
            raise RuleBroken(f"{name} has no profile: it is an output or of one shape")
        return self.profiles[profile][name]

    def create_execution_context(self, strategy: str) -> "Context":
        if strategy != self.module.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuleBroken("a context with scratch memory of its own")
        if self.lacks_weights:
            raise RuleBroken("an engine without its weights")
        found = Context(self)
        self.module.contexts.append(weakref.ref(found))
        return found

    def dtype(self, name: str) -> Any:
        return _NUMPY[self._tensor(name).type]

    def _tensor(self, name: str) -> Any:
        return self.inputs[name] if name in self.inputs else self.outputs[name]


class Context:
    """IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.module.cuda
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.scratch: tuple[int, int] | None = None
        self.changes, self.under_way = 0, 0
        self.ran: Any = None
        self._busy = threading.Lock()

    def set_device_memory(self, address: int, size: int) -> None:
        with self._alone(changes=True):
            if address % ALIGNED or size < self.engine.device_memory_size_v2:
                raise RuleBroken("scratch memory that is misaligned or too small")
            self.cuda.inside(address, size, "device")
            self.scratch = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        with self._alone(changes=True):
            self.cuda.stream(stream)
            self.cuda.not_capturing("a profile is chosen")
            self.profile, self.shapes = index, {}
            return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        with self._alone(changes=True):
            if self.profile is None:
                raise RuleBroken("a shape before a profile")
            fixed = self.engine.get_tensor_shape(name)
            least, _, most = self.engine.profiles[self.profile][name] if -1 in fixed else (fixed,) * 3
            fits = len(shape) == len(least) and all(a <= b <= d for a, b, d in zip(least, shape, most, strict=True))
            if fits:
                self.shapes[name] = tuple(shape)
            return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        with self._alone(changes=True):
            if address % ALIGNED:
                raise RuleBroken(f"the address of {name} is not aligned to {ALIGNED} bytes")
            self.addresses[name] = address
            return True

    def execute_async_v3(self, stream: int) -> bool:
        with self._alone():
            if self.engine.module.pause is not None:
                _meet(self.engine.module.pause)
            found = self.cuda.stream(stream)
            state = self._checked()
            if found.graph is None:
                self.under_way += 1
                self.cuda._work(stream, lambda: self._run(state))
                return True
            if self.ran != state or self.under_way:
                raise RuleBroken("a capture without a run of the same shapes and addresses that was waited for")
            if not self.engine.module.capturable:
                return False
            self.cuda._work(stream, self._captured(state), self.engine.module.node_kind)
            return True

    def _captured(self, state: Any) -> Any:
        changes, context = self.changes, weakref.ref(self)

        def run() -> None:
            found = context()
            if found is None or found.changes != changes:
                raise RuleBroken("a graph is launched whose context was changed or is gone")
            found.under_way += 1
            found._run(state)

        return run

    def _checked(self) -> Any:
        """Shapes and addresses of a pass that may run."""
        if self.scratch is None:
            raise RuleBroken("no scratch memory is set")
        missing = [n for n in self.engine.inputs if n not in self.shapes]
        missing += [n for n in self.engine._names if not self.addresses.get(n)]
        if missing:
            raise RuleBroken(f"no shape or address is set for {missing[0]}")
        sizes = {
            symbol: size
            for name, t in self.engine.inputs.items()
            for symbol, size in zip(t.shape, self.shapes[name], strict=True)
            if isinstance(symbol, str)
        }
        shapes = dict(self.shapes)
        for name, t in self.engine.outputs.items():
            shapes[name] = tuple(sizes[s] if isinstance(s, str) else s for s in t.shape)
        places = {name: (self.addresses[name], self._bytes(name, shape)) for name, shape in shapes.items()}
        for address, size in places.values():
            self.cuda.inside(address, size, "device", "host")
        self._check_apart(places)
        return (self.profile, tuple(sorted(shapes.items())), tuple(sorted(self.addresses.items())), self.scratch)

    def _check_apart(self, places: dict[str, tuple[int, int]]) -> None:
        """That no output lies over another tensor, but an update in place over its own input."""
        assert self.scratch is not None
        others = {**places, "scratch memory": self.scratch}
        for name in self.engine.outputs:
            start, size = places[name]
            for other, (at, length) in others.items():
                own = other == name or (other == name.removesuffix("_out") and at == start)
                if not own and start < at + length and at < start + size:
                    raise RuleBroken(f"{name} lies over {other}")

    def _run(self, state: Any) -> None:
        _, shapes, addresses, (scratch, size) = state
        _bytes_at(scratch, size)[:] = SPOILED
        binding, at = self.engine.session.io_binding(), dict(addresses)
        for name, shape in shapes:
            bind = binding.bind_input if name in self.engine.inputs else binding.bind_output
            bind(name, "cpu", 0, ELEMENT[np.dtype(self.engine.dtype(name))], shape, at[name])
        self.engine.session.run_with_iobinding(binding)
        self.under_way -= 1
        self.ran = state

    def _bytes(self, name: str, shape: Shape) -> int:
        return int(np.prod(shape)) * np.dtype(self.engine.dtype(name)).itemsize

    @contextmanager
    def _alone(self, *, changes: bool = False) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuleBroken("two threads use a context at once")
        try:
            if changes and self.under_way:
                raise RuleBroken("a context is changed while its work is under way")
            self.changes += changes
            yield
        finally:
            self._busy.release()


def _model(path: str) -> bytes:
    """A graph, with the decision's function where it has none and would call the plugin."""
    model = onnx.load(path, load_external_data=False)
    if any(node.domain == c.DECISION_DOMAIN for node in model.graph.node) and not model.functions:
        model.functions.append(decision_function(next(o.version for o in model.opset_import if not o.domain)))
    return bytes(model.SerializeToString())


def _meet(pause: threading.Barrier) -> None:
    try:
        pause.wait()
    except threading.BrokenBarrierError:
        pause.reset()


def _bytes_at(address: int, size: int) -> Any:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
