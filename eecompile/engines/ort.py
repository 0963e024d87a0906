"""ONNX Runtime on the CPU: graphs bound to numpy buffers, one thread pool for the whole process.

Sessions with pools of their own fight each other (idle pools spin against the busy one: a chain of segments runs
several times slower), so every session uses the process-wide pool.
"""

import contextlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from eecompile.engines.interface import HOST, Array, Buffers
from eecompile.errors import IntegrityError, UsageError
from eecompile.schema import GraphInfo

ELEMENT = {np.dtype(t): t for t in (np.float32, np.float16, np.int8, np.int64, np.bool_)}


@cache
def thread_pool() -> list[int]:
    """The size that the process-wide pool was made with; empty until the first engine."""
    return []


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux's
    return os.cpu_count() or 1 if affinity is None else len(affinity(0))


def use_threads(threads: int) -> None:
    """Make the process-wide pool. The first caller decides; another size later raises UsageError.

    Where the application has made ONNX Runtime's global pool itself, that one is used, whatever its size.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads are none", mend="give at least one")
    made = thread_pool()
    if not made:
        ort.set_default_logger_severity(3)
        with contextlib.suppress(Fail):  # already made
            ort.set_global_thread_pool_sizes(threads, 1)
        made.append(threads)
    elif made[0] != threads:
        raise UsageError(
            f"this process already runs {made[0]} threads, not {threads}",
            mend="one process has one thread pool: choose its size at the first open",
        )


def session_options(*, varied: bool = False) -> ort.SessionOptions:
    """How every session is made; `varied` as of OrtEngine."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = not varied
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return options


class OrtPass:
    """A graph bound to buffers of fixed shapes and addresses. Calling it runs one pass; the buffers hold the result.

    Not thread-safe: a binding belongs to one thread at a time (its engine may be shared).
    """

    __slots__ = ("_binding", "_keep", "_run")

    def __init__(self, session: ort.InferenceSession, inputs: Buffers, outputs: Buffers) -> None:
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)
        self._keep = (session, binding, dict(inputs), dict(outputs))
        # the wrapper's own run adds a lock and a look-up to every pass
        self._run, self._binding = session._sess.run_with_iobinding, binding._iobinding

    def __call__(self) -> None:
        self._run(self._binding, None)


class OrtEngine:
    """One ONNX graph loaded in ONNX Runtime. Thread-safe: any number of passes may run at once.

    varied: shapes change from pass to pass, so that the memory of one is not kept for the next (it would add up to
    what the largest took, times the graphs, and more; giving it back costs 3% of Rampart's time).
    """

    memory = HOST

    def __init__(self, path: Path, info: GraphInfo, *, varied: bool = False) -> None:
        self.info = info
        try:
            options = session_options(varied=varied)
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises its own unexported types
            raise IntegrityError(
                f"ONNX Runtime cannot load it: {e}", where=info.path, mend="build the bundle again"
            ) from e

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass over `inputs` by tensor name, where shapes change from pass to pass; the outputs are new arrays."""
        names = [t.name for t in self.info.outputs]
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))

    def bind(self, buffers: Buffers) -> OrtPass:
        """Bind contiguous `buffers` by tensor name; outputs without a buffer are not computed into anything."""
        inputs = {t.name: buffers[t.name] for t in self.info.inputs}
        outputs = {t.name: buffers[t.name] for t in self.info.outputs if t.name in buffers}
        return OrtPass(self.session, inputs, outputs)
