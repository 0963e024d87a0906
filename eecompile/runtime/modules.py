"""Exits with a decoder layer of their own: a step of the staircase beside the main path.

Such an exit attends to the rows of all earlier tokens at its boundary. It gets to see them as they come by and keeps
them waiting; asked about the newest, it runs what waits, as a segment does, into a cache of its own: in one pass for
all sequences that ask, or in a few where they wait far apart (plan.py).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.interface import Engine, Pass
from eecompile.runtime.askers import ExitAsker, ExitSaid, Float, row_buffers
from eecompile.runtime.caches import Caches
from eecompile.runtime.plan import PASS_ROWS, Range, plan_passes
from eecompile.runtime.walk import Walk

_GIVEN: Final[Mapping[str, int]] = {c.PREVIOUS: 0, c.CANDIDATES: -1, c.LAST_LOCAL: 0}  # and what says nothing there


class LayerAsker(ExitAsker):
    """One exit with a layer, over the sequences in the `slots` of a pool. Not thread-safe; the engine is shared.

    `filled` rows of each slot are in its cache, `waiting` behind them. each_pass: as of Pool. Memory: those caches, and
    a prefill pass's rows for each slot.
    """

    def __init__(
        self, engine: Engine, manifest: Manifest, exit_: int, weights: Mapping[str, Float], slots: int = 1,
        each_pass: float = PASS_ROWS,
    ) -> None:  # fmt: skip
        self._minimum, self._each_pass = manifest.minimum_rows, each_pass
        self._wait = max(manifest.prefill_rows, manifest.pending_cap + 1, self._minimum)
        self._most = max(self._wait, slots)
        hidden = manifest.model.hidden
        super().__init__(engine, manifest.exits, exit_, hidden, self._most, weights)
        self._keep_bound = manifest.pending_cap + 2
        self._last_position = manifest.model.context + manifest.slack - 1
        self.filled, self.waiting = [0] * slots, [0] * slots
        self._rows = np.zeros((slots, self._wait, hidden), np.float32)
        memory = engine.memory
        self._flat = row_buffers(self._shape, hidden, self._most, memory)  # of a pass; the others of those that asked
        self._positions, self._start = memory.rows((self._most,), np.int64), memory.rows((slots,), np.int64)
        self._caches = Caches([engine.info], slots, memory)
        self._passes: dict[Range, Pass] = {}

    def __call__(self, rows: Float, walk: Walk | None = None, slots: Sequence[int] = (0,)) -> ExitSaid:
        """As ExitAsker, for the newest row that was offered of each of `slots`, which `rows` [N, D] are, or of a single
        one the newest N; all that waits there is run."""
        each = len(rows) // len(slots)
        if any(self.waiting[slot] < each for slot in slots):
            raise ValueError(f"{each} rows asked of an exit where fewer wait")
        walk = Walk(len(rows)) if walk is None else walk
        view = {name: buffer[: len(rows)] for name, buffer in self._buffers.items()}
        self._remind(walk, view)
        needed = tuple(sorted((slot, max(self.waiting[slot], self._minimum)) for slot in slots))
        for range_ in plan_passes(needed, self._each_pass, self._most)[0]:
            first, last, width = range_
            ours = [(i, slot) for i, slot in enumerate(slots) if first <= slot < last]
            asked = [i * each + j for i, _ in ours for j in range(each)]
            newest = [(slot - first) * width + self.waiting[slot] - each + j for _, slot in ours for j in range(each)]
            self._give(view, asked, newest)
            self._run(range_, {slot for _, slot in ours})
            self._take(view, asked, newest)
        self._note(walk, rows, view)
        return self._routed(self._said(view), walk)

    def offer(self, rows: Float, slot: int = 0) -> None:
        """Take in the rows [R, D] that come next at this exit's boundary in a slot, R at most a prefill pass's."""
        if self.waiting[slot] + len(rows) > self._wait:
            self.catch_up(slot)
        self._rows[slot, self.waiting[slot] : self.waiting[slot] + len(rows)] = rows
        self.waiting[slot] += len(rows)

    def catch_up(self, slot: int = 0) -> None:
        """Run what waits in a slot, without asking."""
        if self.waiting[slot]:
            self._run((slot, slot + 1, max(self.waiting[slot], self._minimum)), {slot})

    def rewind(self, length: int, slot: int = 0) -> None:
        """Drop every row of a slot from position `length` on."""
        self.waiting[slot] = max(0, min(self.waiting[slot], length - self.filled[slot]))
        self.filled[slot] = min(self.filled[slot], length)

    def leave(self, slot: int = 0) -> None:
        """Forget a slot's sequence, and free memory that no other is long enough for."""
        self.rewind(0, slot)
        longest = max(self.filled)
        if self._caches.shrink(longest):
            self._passes = {}
        self._caches.clear(slot, self._caches.rows)

    def move(self, source: int, target: int) -> None:
        """Move a slot's sequence to a free one."""
        self._caches.move(source, target, self.filled[source])
        self._rows[target] = self._rows[source]
        self.filled[target], self.waiting[target] = self.filled[source], self.waiting[source]
        self.leave(source)

    def _give(self, view: Mapping[str, NDArray[Any]], asked: list[int], newest: list[int]) -> None:
        """Set what the graph is given beside rows: of those `asked`, at their places `newest` in the pass."""
        for name, nothing in _GIVEN.items():
            if name in view:
                self._flat[name][:] = nothing
                self._flat[name][newest] = view[name][asked]

    def _take(self, view: Mapping[str, NDArray[Any]], asked: list[int], newest: list[int]) -> None:
        for name, buffer in view.items():
            if name != c.HIDDEN and name not in _GIVEN:
                buffer[asked] = self._flat[name][newest]

    def _run(self, range_: Range, taking_part: Collection[int]) -> None:
        """Run what waits in the slots of a range that take part; the others' rows are padding, as in a pool's pass."""
        first, last, rows = range_
        width = last - first
        given = self._flat[c.HIDDEN][: width * rows].reshape(width, rows, -1)
        for i, slot in enumerate(range(first, last)):
            n = self.waiting[slot] if slot in taking_part else 0
            given[i, :n] = self._rows[slot, :n]
            given[i, n:] = 0
        self._start[:width] = self.filled[first:last]
        positions = self._start[:width, None] + np.arange(rows)
        np.minimum(positions, self._last_position, out=self._positions[: width * rows].reshape(width, rows))
        if self._caches.make_room(max(self.filled[first:last]) + rows):
            self._passes = {}
        run = self._passes.get(range_) or self._bind(range_)
        if rows <= self._keep_bound or rows == self._wait:
            self._passes[range_] = run
        run()
        for slot in taking_part:
            self.filled[slot], self.waiting[slot] = self.filled[slot] + self.waiting[slot], 0

    def _bind(self, range_: Range) -> Pass:
        first, last, rows = range_
        shape = (last - first, rows)
        count = shape[0] * rows
        buffers: dict[str, NDArray[Any]] = {name: buffer[:count] for name, buffer in self._flat.items()}
        buffers |= {
            c.HIDDEN: buffers[c.HIDDEN].reshape(*shape, -1), c.POSITIONS: self._positions[:count].reshape(shape),
            c.WRITE_INDEX: self._start[: shape[0]], **self._caches.of_slots(0, first, last), **self._weights,
        }  # fmt: skip
        return self._engine.bind(buffers)
