"""A whole step of one sequence as one CUDA graph, which decides on the GPU how deep it goes.

    embed -> step 0 -> exit's graph -> if its gate agrees: head -> if it did not fire: step 1 -> .. -> last head

Hidden rows stay on the GPU, in a boundary of their own before each step. How many wait in each the host knows, so that
their numbers are what a graph is made for and kept by; what changes from step to step (token, positions, bounds) lies
in memory that both sides see, as do outcomes and tokens, which the host reads when the graph is done. It waits once.

A pass has to have run before it is captured (TensorRT). It does so on this step's own inputs: what it writes into
caches lies behind what is filled, where the step itself writes next or a later one does.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.branches import Branches, BranchingGraph, Level
from eecompile.engines.cuda_memory import DeviceArray
from eecompile.engines.interface import Buffers, Engine
from eecompile.engines.trt_runtime import TrtPass
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.device_exit import DeviceExit, bind_head, of_tensorrt, unfinished
from eecompile.runtime.heads import Decisions
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.staircase import LoadedGraphs, Staircase

KEPT_GRAPHS = 64
_NOT_RUN = -1  # a token before its head has run


@dataclass(frozen=True)
class Shape:
    """What a graph is made for. waiting: rows before each step when the token comes; exits: which are asked."""

    waiting: tuple[int, ...]
    exits: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Of each step, where the token goes so deep."""
        found, n = [], 1
        for waits in self.waiting:
            n += waits
            found.append(n)
        return tuple(found)


class DeviceSteps:
    """The graphs of a session's steps, and the buffers that they share. Not thread-safe.

    rules: of the exits that may be asked, by exit: with a learned gate and bounds for a head, and nothing else. exact:
    whether the last head is asked about every finished row, or about the newest alone.
    Memory: for each step pending_cap + 1 rows; a context for each pass and number of rows; KEPT_GRAPHS graphs.
    """

    def __init__(
        self, branches: Branches, manifest: Manifest, graphs: LoadedGraphs, stairs: Staircase,
        askers: Sequence[ExitAsker], rules: Mapping[int, ExitRule], *, exact: bool,
    ) -> None:  # fmt: skip
        self._branches, self._graphs, self._stairs, self.exact = branches, graphs, stairs, exact
        self._schedule, self._memory = manifest.schedule, branches.memory
        self._rows, self._width = manifest.pending_cap + 1, manifest.model.hidden
        memory, steps = branches.memory, len(manifest.schedule)
        self._ids = memory.rows((1, 1), np.int64)
        self._positions = [memory.rows((self._rows,), np.int64) for _ in range(steps)]
        self._starts = [memory.rows((1,), np.int64) for _ in range(steps)]
        self._boundary = [memory.cache((self._rows, self._width), np.float32) for _ in range(steps + 1)]
        self._out = memory.cache((self._rows, self._width), np.float32)
        self._last = memory.cache((self._rows, self._width), np.float32)
        self._exits = {
            e: DeviceExit(branches.memory, askers[e], _head_of(manifest, graphs, e), rule, self._width)
            for e, rule in rules.items()
        }
        self._passes: dict[tuple[str, int], TrtPass] = {}
        self._finals: dict[int, tuple[TrtPass, Decisions]] = {}
        self._kept: OrderedDict[Shape, BranchingGraph] = OrderedDict()

    def exit(self, exit_: int) -> "DeviceExit":
        """What exit `exit_` has said in the step that ran last."""
        return self._exits[exit_]

    def prepare(self, token: int, exits: tuple[int, ...]) -> Shape:
        """Make ready for a step that embeds `token` and asks `exits`: inputs, and a graph if there is none yet.

        Nothing of the sequence has changed afterwards. Raises DeviceError where the step cannot be captured.
        """
        shape = Shape(tuple(self._stairs.waiting[: len(self._schedule)]), exits)
        self._ids[0, 0] = token
        for k, rows in enumerate(shape.rows):
            first = self._stairs.filled[k]
            self._starts[k][0] = first
            for row in range(rows):
                self._positions[k][row] = first + row
        if shape in self._kept:
            self._kept.move_to_end(shape)
        else:
            self._kept[shape] = self._made(shape)
            if len(self._kept) > KEPT_GRAPHS:
                self._kept.popitem(last=False)
        return shape

    def run(self, shape: Shape, bounds: Mapping[int, NDArray[np.float32]]) -> None:
        """Run the step that was prepared. bounds: of the exits asked, for their heads."""
        for exit_ in shape.exits:
            self._exits[exit_].clear(bounds[exit_])
        self.decided(shape).token[:] = _NOT_RUN
        with self._branches.device.ordered():
            self._kept[shape].launch()
            self._branches.device.wait()

    def finished(self, shape: Shape) -> Decisions:
        """What the last head says of the finished rows, oldest first, or of the newest alone.

        Raises DeviceError where it has not run.
        """
        found = self.decided(shape)
        if (found.token == _NOT_RUN).any():
            raise unfinished()
        return found

    def decided(self, shape: Shape) -> Decisions:
        """The last head's answers, whatever is in them."""
        return self._final(self._asked_rows(shape))[1]

    def fetch(self) -> None:
        """Copy what waits from the GPU's boundaries to the host's."""
        device = self._branches.device
        kind = device.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for k, waits in enumerate(self._stairs.waiting[: len(self._schedule)]):
            if waits:
                rows = self._memory.rows((waits, self._width))
                with device.ordered():
                    address, source = rows.ctypes.data, self._boundary[k].address
                    device.call("cudaMemcpyAsync", address, source, rows.nbytes, kind, device.stream)
                    device.wait()
                self._stairs.pool.boundary[k][self._stairs.slot, :waits] = rows

    def _made(self, shape: Shape) -> BranchingGraph:
        device = self._branches.device
        passes = self._all(shape)
        with device.ordered():
            for one in passes:
                one.warm()
            device.wait()
            return self._branches.make(lambda root: self._descend(root, 0, shape))

    def _all(self, shape: Shape) -> list[TrtPass]:
        """Every pass of a step; binding may allocate, which a capture must not."""
        own = [part for e in shape.exits for part in self._exits[e].passes]
        steps = [self._step(k, rows) for k, rows in enumerate(shape.rows)]
        return [self._embed(), *steps, *own, self._final(self._asked_rows(shape))[0]]

    def _descend(self, level: Level, first: int, shape: Shape) -> None:
        """Capture the way down from step `first` on, into a graph or a branch's body."""
        last = len(self._schedule) - 1
        steps = [(k, step.exit) for k, step in enumerate(self._schedule) if k >= first]
        behind = [(k, self._exits[e]) for k, e in steps if e is not None and e in shape.exits]
        if not behind:
            with level.section():
                self._walk(first, last, shape)
                self._copy_newest(shape.rows[last], self._asked_rows(shape), self._boundary[last + 1], self._last)
                self._final(self._asked_rows(shape))[0].enqueue()
            return
        k, exit_ = behind[0]
        asks, goes_on = level.condition() if exit_.gated else None, level.condition()
        with level.section():
            self._walk(first, k, shape)
            self._copy_newest(shape.rows[k], 1, self._out, exit_.row)
            exit_.enqueue(level, asks, goes_on)
        if asks is not None:
            exit_.enqueue_head(level, asks, goes_on)
        self._descend(level.branch(goes_on), k + 1, shape)

    def _walk(self, first: int, last: int, shape: Shape) -> None:
        """Put the steps from `first` to `last` into the stream."""
        if first == 0:
            self._embed().enqueue()
        for k in range(first, last + 1):
            self._step(k, shape.rows[k]).enqueue()
            if self._apart(k):
                row = self._width * 4
                waits = shape.waiting[k + 1] if k + 1 < len(self._schedule) else 0
                target = self._boundary[k + 1].address + waits * row
                self._memory.copy(target, self._out.address, shape.rows[k] * row)

    def _apart(self, k: int) -> bool:
        """Whether rows may wait behind step k, so that its output cannot be where they lie."""
        return self._schedule[k].exit in self._exits

    def _copy_newest(self, have: int, rows: int, source: DeviceArray, target: DeviceArray) -> None:
        """Copy the last `rows` of the first `have` rows."""
        row = self._width * 4
        self._memory.copy(target.address, source.address + (have - rows) * row, rows * row)

    def _asked_rows(self, shape: Shape) -> int:
        return shape.rows[-1] if self.exact else 1

    def _embed(self) -> TrtPass:
        buffers = {c.TOKEN_IDS: self._ids, c.HIDDEN_OUT: _rows(self._boundary[0], 1, 1)}
        return self._bound("embed", 1, self._graphs.embed, buffers)

    def _step(self, k: int, rows: int) -> TrtPass:
        step = self._schedule[k]
        out = self._out if self._apart(k) else self._boundary[k + 1]
        return self._bound(f"step {k}", rows, self._graphs.segments[step.segment], {
            c.HIDDEN: _rows(self._boundary[k], 1, rows),
            c.HIDDEN_OUT: _rows(out, 1, rows),
            c.POSITIONS: self._positions[k][:rows].reshape(1, rows),
            c.WRITE_INDEX: self._starts[k],
            **self._stairs.caches.of_slots(step.cache, self._stairs.slot, self._stairs.slot + 1),
            **self._graphs.factors_of(k),
        })  # fmt: skip

    def _final(self, rows: int) -> tuple[TrtPass, Decisions]:
        if rows not in self._finals:
            self._finals[rows] = bind_head(self._memory, self._graphs.head, _rows(self._last, rows))[:2]
        return self._finals[rows]

    def _bound(self, name: str, rows: int, engine: Engine, buffers: Buffers) -> TrtPass:
        if (name, rows) not in self._passes:
            self._passes[name, rows] = of_tensorrt(engine.bind(buffers))
        return self._passes[name, rows]


def _head_of(manifest: Manifest, graphs: LoadedGraphs, exit_: int) -> Engine:
    name = manifest.exits[exit_].head
    return graphs.head if name == c.FULL_HEAD else graphs.heads[name]


def _rows(block: DeviceArray, *shape: int) -> DeviceArray:
    """The first rows of a block [.., D], in the shape (*shape, D)."""
    return replace(block, shape=(*shape, block.shape[-1]))
