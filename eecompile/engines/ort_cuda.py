"""ONNX Runtime on a GPU (package onnxruntime-gpu): caches and constants in the GPU's memory, rows copied for each pass.

ONNX Runtime falls back to the CPU without a word where it cannot load its CUDA libraries, and says that it has them
where it has not. So what a session really got is asked and held against what it was to get.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from eecompile.engines.cuda import CudaDevice
from eecompile.engines.cuda_memory import CudaMemory
from eecompile.engines.interface import Array, Buffers
from eecompile.engines.ort import ELEMENT, session_options
from eecompile.errors import IntegrityError, MissingBackend
from eecompile.schema import GraphInfo

PROVIDER = "CUDAExecutionProvider"
_MEND = (
    "have onnxruntime-gpu instead of onnxruntime (two packages of the same files: uninstall both, then install the "
    "one), with the CUDA and cuDNN that it asks for; or use the back end onnxruntime"
)


def load_ort_cuda(root: Path, length: int) -> tuple[Callable[[GraphInfo], "OrtCudaEngine"], CudaMemory]:
    """What loads graphs of the bundle at `root` onto this machine's GPU, and their memory.

    length: T of every cache. Raises MissingBackend where ONNX Runtime or this machine cannot.
    """
    _check_got(ort.get_available_providers(), "this ONNX Runtime has")
    memory = CudaMemory(CudaDevice(), length)
    return lambda info: OrtCudaEngine(root / info.path, info, memory), memory


class OrtCudaEngine:
    """One graph loaded in ONNX Runtime on a GPU. Thread-safe: its passes take turns on the device's stream."""

    def __init__(self, path: Path, info: GraphInfo, memory: CudaMemory) -> None:
        self.info, self.memory = info, memory
        options = {"device_id": "0", "user_compute_stream": str(int(memory.device.stream))}
        try:
            self._session = ort.InferenceSession(str(path), session_options(), providers=[(PROVIDER, options)])
        except Exception as e:  # onnxruntime raises its own unexported types
            raise IntegrityError(
                f"ONNX Runtime cannot load it on a GPU: {e}", where=info.path, mend="use the back end onnxruntime"
            ) from e
        _check_got(self._session.get_providers(), "the session got")

    def bind(self, buffers: Buffers) -> "OrtCudaPass":
        """As Engine.bind."""
        return OrtCudaPass(self._session, self.info, self.memory, buffers)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As Engine.run."""
        names = [t.name for t in self.info.outputs]
        with self.memory.device.ordered():
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


class OrtCudaPass:
    """A graph bound to buffers: numpy's are copied to the GPU and back by ONNX Runtime, the GPU's own are used.

    ONNX Runtime copies an input when it is bound, and never again (microsoft/onnxruntime issue 5857): numpy's are bound
    anew for each run.
    """

    __slots__ = ("_again", "_binding", "_device", "_keep", "_run")

    def __init__(self, session: ort.InferenceSession, info: GraphInfo, memory: CudaMemory, buffers: Buffers) -> None:
        binding = session.io_binding()
        inputs = {t.name: _place(memory, t.name, buffers[t.name]) for t in info.inputs}
        for name, place in inputs.items():
            binding.bind_input(name, *place)
        self._again = [(name, *place) for name, place in inputs.items() if isinstance(buffers[name], np.ndarray)]
        for t in info.outputs:
            if t.name in buffers:
                binding.bind_output(t.name, *_place(memory, t.name, buffers[t.name]))
        self._keep, self._device = (session, binding, dict(buffers)), memory.device
        self._run, self._binding = session.run_with_iobinding, binding

    def __call__(self) -> None:
        with self._device.ordered():
            for place in self._again:
                self._binding.bind_input(*place)
            self._run(self._binding)  # waits for the stream at its end


def _place(memory: CudaMemory, name: str, buffer: object) -> tuple[str, int, object, tuple[int, ...], int]:
    """Device, its number, element type, shape and address, as ONNX Runtime binds them."""
    kind = "cpu" if isinstance(buffer, np.ndarray) else "cuda"
    shape: tuple[int, ...] = buffer.shape  # type: ignore[attr-defined]
    element = ELEMENT[buffer.dtype]  # type: ignore[attr-defined]
    return kind, 0, element, shape, memory.address(buffer, name)


def _check_got(found: list[str], who: str) -> None:
    if PROVIDER not in found:
        raise MissingBackend(f"the back end cuda needs {PROVIDER}, and {who} {', '.join(found) or 'none'}", mend=_MEND)
