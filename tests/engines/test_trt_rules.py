"""The rules of TensorRT and CUDA that the doubles enforce, each broken once; and the doubles against the packages."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from cuda_double import FakeCuda
from doubled import BOLD, COUNT, PROMPTS, check_arguments, in_threads, opened
from graphs_double import RuleBroken
from trt_double import Context, Engine, FakeTensorRT

from eecompile.engines import cuda_memory
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.trt_runtime import TrtEngine, TrtPass, TrtRuntime
from eecompile.errors import DeviceError


def generate(built: dict[str, Path], trt: FakeTensorRT) -> None:
    tiny.tokens(opened(built), PROMPTS[0], COUNT, stop=(), mode="exact", thresholds=BOLD)


@contextmanager
def unlocked(self: CudaDevice) -> Iterator[int]:
    yield int(self.stream)


def without_scratch(self: TrtRuntime, engine: Any, profile: int) -> Any:
    context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_optimization_profile_async(profile, int(self.device.stream))
    return context


def own_scratch(self: TrtRuntime, engine: Any, profile: int) -> Any:
    return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.STATIC)


def without_shapes(self: TrtPass, context: Any) -> Any:
    for name, at in self._addresses.items():
        context.set_tensor_address(name, at)
    return context


def without_one_address(self: TrtPass, context: Any) -> Any:
    for name, shape in self._shapes.items():
        context.set_input_shape(name, shape)
    for name, at in list(self._addresses.items())[:-1]:
        context.set_tensor_address(name, at)
    return context


def captured_at_once(self: TrtPass) -> None:
    device, shared = self._engine.shared.device, self._engine.shared
    with device.ordered():
        device.wait()
        self._context = self._prepared(shared.context(self._engine.engine, self._profile))
        self._capture(device)
        device.launch(self._graph)
        device.wait()


def captured_unwaited(self: TrtPass) -> None:
    device, shared = self._engine.shared.device, self._engine.shared
    with device.ordered():
        self._context = self._prepared(shared.context(self._engine.engine, self._profile))
        self._enqueue(self._context)
        self._capture(device)
        device.wait()


def in_a_capture(act: Callable[[TrtPass], object]) -> Callable[[TrtPass, Any], None]:
    """TrtPass._enqueue that does something it must not while it is captured."""
    honest = TrtPass._enqueue

    def enqueue(self: TrtPass, context: Any) -> None:
        honest(self, context)
        if self._context is not None and context is self._context and self._ran:
            act(self)

    return enqueue


def hoard(one: TrtPass) -> None:
    kept = one._engine.shared.__dict__.setdefault("hoard", [])
    kept.append(one._engine.memory.scratch((1 << 21,), np.uint8))


def shared_context_for_all(self: TrtRuntime, engine: Any, profile: int) -> Any:
    kept = self.__dict__.setdefault("kept", {})
    if id(engine) not in kept:
        kept[id(engine)] = honest_context(self, engine, profile)
    return kept[id(engine)]


honest_context = TrtRuntime.context


RULES: dict[str, tuple[type, str, Any, str]] = {
    "no shapes": (TrtPass, "_prepared", without_shapes, "no shape or address is set"),
    "an output unbound": (TrtPass, "_prepared", without_one_address, "no shape or address is set"),
    "no scratch memory": (TrtRuntime, "context", without_scratch, "no scratch memory"),
    "scratch of its own": (TrtRuntime, "context", own_scratch, "scratch memory of its own"),
    "no wait": (CudaDevice, "wait", lambda self: None, "under way|before the run before it"),
    "captured without a run": (TrtPass, "__call__", captured_at_once, "capture without a run"),
    "captured before the run is done": (TrtPass, "__call__", captured_unwaited, "before the run before it was waited"),
    "one context for all graphs": (TrtRuntime, "context", shared_context_for_all, "context was changed"),
    "waiting in a capture": (
        TrtPass, "_enqueue", in_a_capture(lambda p: p._engine.shared.device.wait()), "during a capture",
    ),
    "memory in a capture": (
        TrtPass, "_enqueue", in_a_capture(hoard), "allocated during",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_shows(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    where, name, broken, message = RULES[rule]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(RuleBroken, match=message):
        generate(built, trt)


def test_misaligned_addresses_show(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "ALIGNMENT", 4)
    with pytest.raises(RuleBroken, match="aligned"):
        generate(built, trt)


def test_the_default_stream_shows(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = CudaDevice.__init__

    def init(self: CudaDevice) -> None:
        honest(self)
        self.stream = 0

    monkeypatch.setattr(CudaDevice, "__init__", init)
    with pytest.raises(RuleBroken, match="default stream"):
        generate(built, trt)


def test_two_threads_in_a_context_show(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaDevice, "ordered", unlocked)
    assert any(isinstance(found, RuleBroken) for found in in_threads(opened(built), trt))


def test_a_shape_outside_of_the_profile_shows(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrtEngine, "_profile_of", lambda self, shapes: 0)
    with pytest.raises(DeviceError, match="TensorRT refuses the shape or address of token_ids"):
        tiny.tokens(opened(built), PROMPTS[1], 2, stop=())


def test_the_double_has_nothing_of_its_own() -> None:
    """Every name that the double of CUDA has is the package's, and so is every member of its enumerations."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in [n for n in dir(FakeCuda) if n.startswith("cuda")]:
        assert hasattr(runtime, name), name
        for member in vars(getattr(FakeCuda, name)) if isinstance(getattr(FakeCuda, name), SimpleNamespace) else ():
            assert hasattr(getattr(runtime, name), member), member


def test_the_package_takes_these_arguments(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU each function of CUDA fails, but not before it has looked at what it was given."""
    list(opened(built).generate_many([[3], [4, 5]], slots=2, max_new_tokens=4, stop=()))
    check_arguments(trt.cuda, monkeypatch)
    assert "cudaGraphLaunch" in trt.cuda.arguments


def test_the_double_has_the_packages_names() -> None:
    """Of TensorRT's packages, the one that installs everywhere; a child loads it, since it cannot be unloaded."""
    pytest.importorskip("tensorrt_rtx")
    own = {
        kind.__name__: sorted(n for n in (*vars(kind), *more) if not n.startswith("_"))
        for kind, more in (
            (Engine, ("device_memory_size_v2", "num_io_tensors", "num_optimization_profiles")),
            (Context, ()),
        )
    }
    own["Engine"] = [n for n in own["Engine"] if n not in ("dtype", "refit", "weights_from")]
    module = [n for n in vars(FakeTensorRT(FakeCuda())) if n[0].isupper()] + ["Runtime"]
    code = f"""
import tensorrt_rtx as trt
missing = [n for n in {own["Engine"]} if not hasattr(trt.ICudaEngine, n)]
missing += [n for n in {own["Context"]} if not hasattr(trt.IExecutionContext, n)]
missing += [n for n in {module} if not hasattr(trt, n)]
missing += [k for k in {list(vars(FakeTensorRT(FakeCuda()).DataType))} if not hasattr(trt.DataType, k)]
trt.ExecutionContextAllocationStrategy.USER_MANAGED, trt.Runtime.deserialize_cuda_engine, trt.Logger.ERROR
print(missing)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
