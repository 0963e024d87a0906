"""An exit in a CUDA graph of a step: its own graph, its gate, its head, and what came of them (device_step.py)."""

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.engines.branches import Level
from eecompile.engines.cuda_memory import CudaMemory, DeviceArray
from eecompile.engines.interface import Array, Engine, Pass
from eecompile.engines.trt_runtime import TrtPass
from eecompile.errors import DeviceError
from eecompile.plugins.conditions import Outcome
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.heads import Decisions
from eecompile.runtime.rules import HIGHEST, ExitRule


class DeviceExit:
    """One exit in a graph: its own, its gate, its head, and what came of them.

    row: where the newest row is to be copied. gated: whether a learned gate is asked before the head.
    """

    def __init__(self, memory: CudaMemory, asker: ExitAsker, head: Engine, rule: ExitRule, width: int) -> None:
        self.row, self._ready = (memory.cache((1, width), np.float32) for _ in range(2))
        self._rule, self._value = rule, memory.cache((1,), np.float32)
        self.gated = "learned" in rule.cheap
        self._outcome = memory.rows((1,), np.int32)
        buffers = {c.HIDDEN: self.row, c.EXIT_HIDDEN: self._ready, c.CONFIDENCE: self._value}
        self._exit = of_tensorrt(asker.bind(buffers))
        self._head, self.decisions, self._bounds = bind_head(memory, head, self._ready)
        self.passes = (self._exit, self._head)

    @property
    def outcome(self) -> Outcome:
        """What came of it. Raises DeviceError where the step did not get here, or ended between gate and head."""
        found = Outcome(int(self._outcome[0]))
        if found in (Outcome.NOT_REACHED, Outcome.ASKED):
            raise unfinished()
        return found

    def clear(self, bounds: NDArray[np.float32]) -> None:
        """Make ready for a step, with these bounds for the head."""
        self._outcome[0] = Outcome.NOT_REACHED
        self._bounds[0] = bounds

    def enqueue(self, level: Level, asks: int | None, goes_on: int) -> None:
        """Put the exit's graph into a section, then its gate; or the head and its decision, where there is no gate."""
        self._exit.enqueue()
        if asks is None:
            self._head.enqueue()
            self._decide(level, goes_on)
        else:
            above, most = self._rule.cheap["learned"], HIGHEST.get("learned", 1.0)
            level.ask(self._value.address, above, most, self._outcome.ctypes.data, asks)

    def enqueue_head(self, level: Level, asks: int, goes_on: int) -> None:
        """Have the head run where the gate has agreed, and decide, in any case."""
        body = level.branch(asks)
        with body.section():
            self._head.enqueue()
        with level.section():
            self._decide(level, goes_on)

    def _decide(self, level: Level, goes_on: int) -> None:
        level.decide(self.decisions.exit_flag.ctypes.data, self._outcome.ctypes.data, goes_on, gated=self.gated)


def unfinished() -> DeviceError:
    """The fault of a graph that has not run as far as what it has decided says."""
    return DeviceError(
        "a step ended on the GPU before it was done", mend="decide by the pinned flag: --decision pinned"
    )


def bind_head(memory: CudaMemory, engine: Engine, hidden: DeviceArray) -> tuple[TrtPass, Decisions, Array]:
    """A head over rows [N, D], what it says of them, and its bounds [N, 3], which nothing fails."""
    rows = hidden.shape[0]
    floats = {name: memory.rows((rows,)) for name in (c.MAX_PROB, c.MARGIN, c.ENTROPY)}
    token, flag = memory.rows((rows,), np.int64), memory.rows((rows,), np.bool_)
    bounds = memory.rows((rows, len(c.NO_BOUND)))
    bounds[:] = c.NO_BOUND
    buffers = {c.HIDDEN: hidden, c.THRESHOLDS: bounds, c.TOKEN: token, c.EXIT_FLAG: flag, **floats}
    said = Decisions(token, floats[c.MAX_PROB], floats[c.MARGIN], floats[c.ENTROPY], flag, None)
    return of_tensorrt(engine.bind(buffers)), said, bounds


def of_tensorrt(bound: Pass) -> TrtPass:
    """A pass that an engine of TensorRT's has bound."""
    if not isinstance(bound, TrtPass):
        raise TypeError(f"{type(bound).__name__} is no pass of TensorRT's")
    return bound
