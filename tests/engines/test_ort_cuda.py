"""The back end cuda on doubles: ONNX Runtime's providers as they really are, and caches in the GPU's memory."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
from cuda_double import FakeCuda
from graphs_double import RuleBroken

from eecompile.engines import ort_cuda
from eecompile.errors import MissingBackend
from eecompile.runtime import Bundle

PROVIDER = "CUDAExecutionProvider"


class Binding:
    """An IoBinding whose GPU is the host: "cuda" is only taken for memory of the double's device, "cpu" for none. An
    input in the host's memory is copied when it is bound, and never again."""

    def __init__(self, real: Any, cuda: FakeCuda) -> None:
        self.real, self._cuda = real, cuda
        self._copies: dict[str, Any] = {}

    def bind_input(self, name: str, device: str, number: int, element: Any, shape: Any, address: int) -> None:
        kind = self._checked(device, element, shape, address)
        if device == "cpu":
            size = int(np.prod(shape)) * np.dtype(element).itemsize
            self._copies[name] = np.frombuffer(ctypes.string_at(address, size), np.uint8).copy()
            address = self._copies[name].ctypes.data
        self.real.bind_input(name, kind, 0, element, shape, address)

    def bind_output(self, name: str, device: str, number: int, element: Any, shape: Any, address: int) -> None:
        self.real.bind_output(name, self._checked(device, element, shape, address), 0, element, shape, address)

    def _checked(self, device: str, element: Any, shape: Any, address: int) -> str:
        size = int(np.prod(shape)) * np.dtype(element).itemsize
        self._cuda.inside(address, size, "device" if device == "cuda" else "host")
        return "cpu"


class Session:
    """An InferenceSession that says it got `got`, and does first what waits in its stream, as a GPU would."""

    got = (PROVIDER, "CPUExecutionProvider")

    def __init__(self, path: str, options: Any, providers: Any) -> None:
        [(name, settings)] = providers
        assert name == PROVIDER
        self._cuda: FakeCuda = sys.modules["cuda.bindings.runtime"]  # type: ignore[assignment]
        self._stream = int(settings["user_compute_stream"])
        self._real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return list(self.got)

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding(), self._cuda)

    def run(self, names: list[str], inputs: Any) -> Any:
        return self._real.run(names, inputs)

    def run_with_iobinding(self, binding: Binding) -> None:
        queue = self._cuda.stream(self._stream).queue
        while queue:
            queue.pop(0)()
        self._real.run_with_iobinding(binding.real)


class Package:
    """The package onnxruntime-gpu."""

    InferenceSession = Session

    def __init__(self, available: tuple[str, ...]) -> None:
        self._available = available

    def get_available_providers(self) -> list[str]:
        return list(self._available)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    double = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", double)
    monkeypatch.setattr(ort_cuda, "ort", Package((PROVIDER, "CPUExecutionProvider")))
    return double


def test_sessions_give_the_tokens_of_the_cpu(shelf: Any, cuda: FakeCuda) -> None:
    path = shelf.bundle(at=[1, 3], context=96).files.path
    cpu, gpu = Bundle.open(path), Bundle.open(path, backend="cuda")
    how: dict[str, Any] = {"mode": "exact", "thresholds": {1: {"max_prob": 0.02}, 3: {"max_prob": 0.02}}}
    for settings in ({"mode": "full"}, how):
        session = gpu.session(**settings)
        for prompt in ([5, 6], [9] * 40):
            made = [t.id for t in session.generate(prompt, max_new_tokens=16, stop=())]
            assert made == tiny.tokens(cpu, prompt, 16, stop=(), **settings)
    assert cuda.calls["cudaMalloc"]


def test_batches_move_in_the_gpus_memory(shelf: Any, cuda: FakeCuda) -> None:
    path = shelf.bundle(at=[2], context=96, slots=3).files.path
    found = [
        {
            r.number: r.ids
            for r in bundle.generate_many([[3, 4], [8] * 30, [1], [7]], slots=3, max_new_tokens=8, stop=())
        }
        for bundle in (Bundle.open(path), Bundle.open(path, backend="cuda"))
    ]
    assert found[0] == found[1]
    assert cuda.calls["cudaMemset2DAsync"]


def test_memory_of_another_is_a_bug(shelf: Any, cuda: FakeCuda) -> None:
    embed = Bundle.open(shelf.bundle().files.path, backend="cuda").graphs.embed
    with pytest.raises(ValueError, match="not in the memory"):
        embed.bind({"token_ids": np.zeros((1, 2), np.int64)})
    with pytest.raises(RuleBroken):
        cuda.inside(12345, 4)


@pytest.mark.parametrize("available", [("CPUExecutionProvider",), (PROVIDER, "CPUExecutionProvider")])
def test_what_it_got_is_asked(
    shelf: Any, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, available: tuple[str, ...]
) -> None:
    """ONNX Runtime lists the provider and falls back: both what was asked and what was got are named."""
    monkeypatch.setattr(ort_cuda, "ort", Package(available))
    monkeypatch.setattr(Session, "got", ("CPUExecutionProvider",))
    who = "the session got" if PROVIDER in available else "this ONNX Runtime has"
    with pytest.raises(MissingBackend, match=f"needs {PROVIDER}, and {who} CPUExecutionProvider") as caught:
        Bundle.open(shelf.bundle().files.path, backend="cuda")
    assert caught.value.exit_status == 3


def test_the_package_here_is_the_cpus(shelf: Any) -> None:
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(MissingBackend, match="this ONNX Runtime has"):
        Bundle.open(Path(shelf.bundle().files.path), backend="cuda")
