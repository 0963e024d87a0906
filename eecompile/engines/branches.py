"""CUDA graphs with branches: what runs in one launch and decides on the GPU how far it goes.

A graph is captured in sections, one behind the other; a section that a branch follows ends with what sets the branch's
condition. A body, which is a graph too, runs at most once a launch. CUDA lets nothing into it but kernels, copies and
fills of memory, and branches; an engine whose capture has anything else fails when the whole is instantiated.

    CUDA runtime API, cudaConditionalNodeParams and cudaGraphNodeTypeConditional; CUDA 12.4 and later
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from eecompile.engines.cuda import CudaDevice
from eecompile.engines.cuda_memory import CudaMemory
from eecompile.errors import DeviceError
from eecompile.plugins.conditions import Conditions, Outcome


class Branches:
    """A GPU on which such graphs run: its memory, and the plugin library's functions.

    Raises DeviceError where a small one does not do on this GPU what it should.
    """

    def __init__(self, memory: CudaMemory, conditions: Conditions) -> None:
        self.memory, self.device, self.conditions = memory, memory.device, conditions
        self._try()

    def make(self, fill: Callable[["Level"], None]) -> "BranchingGraph":
        """The graph that `fill` makes of an empty one, ready to be launched. The device is the caller's
        (CudaDevice.ordered). Raises DeviceError where something cannot be captured, or is not allowed in a branch."""
        graph = int(self.device.call("cudaGraphCreate", 0))
        try:
            fill(Level(self, graph))
            return BranchingGraph(self.device, graph, self.device.call("cudaGraphInstantiate", graph, 0))
        except BaseException:
            self.device.retire("cudaGraphDestroy", graph)
            raise

    def _try(self) -> None:
        """Run a graph of the kind that decoding makes, every way through it."""
        memory = self.memory
        given, flag = memory.rows((1,)), memory.rows((1,), np.bool_)
        outcomes = [memory.rows((1,), np.int32) for _ in range(3)]
        blocks = [memory.cache((64,), np.float32) for _ in range(2)]
        value, fired, *at = (int(array.ctypes.data) for array in (given, flag, *outcomes))

        def fill(root: Level) -> None:
            asked, on = root.condition(), root.condition()
            with root.section():
                root.ask(value, 0.5, 1.0, at[0], asked)
            head = root.branch(asked)
            with head.section():
                memory.copy(blocks[0].address, blocks[1].address, blocks[0].nbytes)
                head.ask(value, 0.5, 1.0, at[1])
            with root.section():
                root.decide(fired, at[0], on, gated=True)
            deeper = root.branch(on)
            with deeper.section():
                deeper.ask(value, -1.0, 1.0, at[2])

        with self.device.ordered() as stream:
            self.conditions.ask(stream, value, 0.0, 1.0, at[0], None)  # loads the kernels, which no capture may do
            self.conditions.decide(stream, fired, False, at[0], None)
            self.device.wait()
            graph = self.make(fill)
            for number, fires in ((0.9, True), (0.9, False), (0.1, True), (0.9, True)):
                given[0], flag[0] = number, fires
                for outcome in outcomes:
                    outcome[0] = Outcome.NOT_REACHED
                graph.launch()
                self.device.wait()
                found = tuple(int(outcome[0]) for outcome in outcomes)
                if found != _expected(number, fires):
                    raise DeviceError(f"a graph with branches ran wrongly on this GPU: {found}")


def _expected(number: float, fires: bool) -> tuple[int, int, int]:
    if number <= 0.5:
        return Outcome.REFUSED, Outcome.NOT_REACHED, Outcome.ASKED
    if fires:
        return Outcome.FIRED, Outcome.ASKED, Outcome.NOT_REACHED
    return Outcome.DECLINED, Outcome.ASKED, Outcome.ASKED


class Level:
    """A graph, or the body of a branch, while it is made. The device is the caller's."""

    def __init__(self, shared: Branches, graph: int) -> None:
        self.graph, self._shared = graph, shared
        self._last: int | None = None

    @contextmanager
    def section(self) -> Iterator[None]:
        """Capture what is put into the stream inside of `with`, behind what this graph has so far."""
        device = self._shared.device
        self._shared.conditions.capture(int(device.stream), self.graph, self._last)
        try:
            yield
        except BaseException:
            device.runtime.cudaStreamEndCapture(device.stream)
            device.runtime.cudaGetLastError()
            raise
        device.call("cudaStreamEndCapture", device.stream)

    def condition(self) -> int:
        """A condition for one branch of this graph; no section may be open."""
        return self._shared.conditions.create(self.graph)

    def ask(self, value: int, above: float, most: float, outcome: int, condition: int | None = None) -> None:
        """As Conditions.ask, at the end of a section."""
        stream = int(self._shared.device.stream)
        self._last = self._shared.conditions.ask(stream, value, above, most, outcome, condition)

    def decide(self, flag: int, outcome: int, condition: int, *, gated: bool) -> None:
        """As Conditions.decide, at the end of a section."""
        stream = int(self._shared.device.stream)
        self._last = self._shared.conditions.decide(stream, flag, gated, outcome, condition)

    def branch(self, condition: int) -> "Level":
        """The body of a branch behind the last `ask` or `decide`, or the last branch; no section may be open."""
        assert self._last is not None, "a branch without anything that sets its condition"
        self._last, body = self._shared.conditions.branch(self.graph, self._last, condition)
        return Level(self._shared, body)


class BranchingGraph:
    """A graph that can be launched again and again. It lives as long as this; the graph it was made from with it, since
    that owns its conditions."""

    def __init__(self, device: CudaDevice, graph: int, executable: Any) -> None:
        self._device, self._executable = device, executable
        weakref.finalize(self, _retire, device, graph, executable).atexit = False

    def launch(self) -> None:
        """Put it into the stream, which is the caller's."""
        self._device.launch(self._executable)


def _retire(device: CudaDevice, graph: int, executable: Any) -> None:
    device.retire("cudaGraphDestroy", graph)
    device.retire("cudaGraphExecDestroy", executable)  # what was retired last goes first
