"""A pool of slots: the caches that sequences share, and the passes that run several of them at once.

Each sequence has a slot of the same caches. A pass runs a contiguous range of slots. Those in the range that take no
part, and rows that only fill a slot up, are padding: zeros, written behind the slot's filled rows, where nothing sees
them before they are overwritten.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.interface import Pass
from eecompile.runtime.caches import Caches
from eecompile.runtime.cycles import Repeater
from eecompile.runtime.plan import PASS_ROWS, Range, Waiting, plan_passes
from eecompile.runtime.source import Encoded, read_prompt

if TYPE_CHECKING:
    from eecompile.runtime.staircase import LoadedGraphs, Staircase

Rows: TypeAlias = NDArray[np.float32]
Place: TypeAlias = tuple[int, int]  # of a slot's first row in a pass: cache index, position
KEPT_ROWS = 512  # of a cache that the next sequence takes over
_NOWHERE: tuple[int, list[Place]] = (0, [])


class Pool:
    """`slots` places for sequences, and the passes over them. Not thread-safe.

    Costs for each slot: 2 x layers x KV x d float32 for each token of the longest sequence, and an eighth more.
    each_pass: rows whose arithmetic costs as much as a pass itself. `passes` counts what ran, `rows`
    the rows through layers, padding included.
    """

    def __init__(
        self, manifest: Manifest, graphs: "LoadedGraphs", slots: int = 1, each_pass: float = PASS_ROWS
    ) -> None:
        self.schedule, self.prefill_rows = manifest.schedule, manifest.prefill_rows
        self.slots: list[weakref.ref[Staircase] | None] = [None] * slots  # a sequence owns its pool, not the reverse
        self.each_pass, self.passes, self.rows = each_pass, 0, 0
        self._graphs, self._minimum = graphs, manifest.minimum_rows
        self._manifest = manifest
        self._encoded: Encoded = {}
        most = max(manifest.prefill_rows, manifest.pending_cap + 1, manifest.minimum_rows)
        self.most = max(most, slots)  # rows of a pass
        width, steps = manifest.model.hidden, len(manifest.schedule)
        self.boundary = [np.zeros((slots, most, width), np.float32) for _ in range(steps + 1)]
        memory = graphs.embed.memory
        self._in, self._out = (memory.rows((self.most, width)) for _ in range(2))
        self._ids, self._positions = (memory.rows((self.most,), np.int64) for _ in range(2))
        self._start = memory.rows((slots,), np.int64)
        self._last_position = manifest.model.context + manifest.slack - 1
        writers = {step.cache: graphs.segments[step.segment].info for step in manifest.schedule}
        self.caches = Caches([writers[i] for i in range(len(manifest.caches))], slots, memory)
        self._repeaters = {k: Repeater(gate) for k, gate in graphs.cycles.items()}
        self._layers = [graphs.segments[step.segment].info.layers for step in manifest.schedule]
        self._keep_bound = manifest.pending_cap + 2
        self._bound: dict[tuple[bool, int, int, int, int], Pass] = {}
        self._placed = _NOWHERE

    def take_up(self, prompt: list[int]) -> list[int]:
        """The tokens that a sequence runs first: its prompt's own, or where that is a source, which is encoded here for
        the one sequence of such a pool, the one that its target begins with."""
        first, encoded = read_prompt(self._manifest, self._graphs.encoder, prompt)
        if encoded:  # which bindings of the source before do not know
            self._encoded, self._bound = encoded, {}
        return first

    def embed(self, stairs: "Sequence[Staircase]", tokens: Sequence[Sequence[int]]) -> None:
        """Embed tokens of each staircase into its first boundary: in one pass, so at most `most` of them."""
        rows = 0
        for ids in tokens:
            self._ids[rows : rows + len(ids)] = ids
            rows += len(ids)
        self._pass(False, 0, 0, 1, rows)()
        rows = 0
        for one, ids in zip(stairs, tokens, strict=True):
            one.put(0, self._out[rows : rows + len(ids)])
            one.length += len(ids)
            rows += len(ids)

    def run_step(self, k: int, stairs: "Sequence[Staircase]") -> list[Rows]:
        """Run step k on everything that waits before it in each of `stairs`; returns their output rows, newest last.

        The rows join the next boundary; after the last step they are finished: normalised and ready for the head. They
        are views that the next pass of this step overwrites.
        """
        if any(one.left[k] for one in stairs):
            self.fill(k, stairs)
        if len(stairs) == 1:
            one = stairs[0]
            self._run_range(k, (one.slot, one.slot + 1, max(one.waiting[k], self._minimum)), [one])
        else:
            self._run_ranges(k, self.waiting(k, stairs), stairs)
        return [one.newest for one in stairs]

    def fill(self, k: int, stairs: "Sequence[Staircase]") -> None:
        """Fill step k's cache from the rows that were left before it, where there are any (propagate)."""
        least = self._minimum
        rows = tuple(sorted((one.slot, max(one.left[k], least)) for one in stairs if one.left[k]))
        if rows:
            self._run_ranges(k, rows, stairs, kv=True)

    def waiting(self, k: int, stairs: "Sequence[Staircase]") -> Waiting:
        """(slot, rows that a pass would need for it), slots ascending, of what waits before step k."""
        least = self._minimum
        return tuple(sorted((one.slot, max(one.waiting[k], least)) for one in stairs if one.waiting[k]))

    def _run_ranges(self, k: int, rows: Waiting, stairs: "Sequence[Staircase]", *, kv: bool = False) -> None:
        taking_part = {one.slot: one for one in stairs if (one.left if kv else one.waiting)[k]}
        for range_ in plan_passes(rows, self.each_pass, self.most)[0]:
            self._run_range(k, range_, [taking_part.get(slot) for slot in range(*range_[:2])], kv=kv)

    def _run_range(self, k: int, range_: Range, stairs: "Sequence[Staircase | None]", *, kv: bool = False) -> None:
        """One pass over a range of slots; `stairs` are those that take part, by slot. kv: K/V-only, of left rows."""
        first, last, rows = range_
        width = last - first
        ran, boundary = self._in[: width * rows].reshape(width, rows, -1), self.boundary[k]
        places = []
        for i, one in enumerate(stairs):
            n = 0 if one is None else (one.left if kv else one.waiting)[k]
            if n:
                ran[i, :n] = boundary[first + i, :n]
            if n < rows:
                ran[i, n:] = 0
            idle = self._at(first + i) if one is None else one
            places.append((0, 0) if idle is None else idle.place(k))
        self._place(k, places, rows)
        self._pass(kv, k + 1, first, last, rows)()
        self.passes += 1
        self.rows += 0 if kv else width * rows
        ran, layers = self._out[: width * rows].reshape(width, rows, -1), self._layers[k]
        if k in self._repeaters:
            ran = self._repeated(k, stairs, self._in[: width * rows].reshape(width, rows, -1).copy(), ran.copy())
        for i, one in enumerate(stairs):
            if one is not None and kv:
                one.propagated(k)
            elif one is not None:
                one.ran(k, ran[i], layers)

    def _repeated(self, k: int, stairs: "Sequence[Staircase | None]", inputs: Rows, ran: Rows) -> Rows:
        """What a pass made of inputs [S, R, D] with each row at its last run, every sequence's on its own."""
        for i, one in enumerate(stairs):
            n = 0 if one is None else one.waiting[k]
            if one is not None and n:
                self._repeaters[k].settle(inputs[i, :n], ran[i, :n], partial(self._again, k, one))
        return ran

    def _again(self, k: int, one: "Staircase", rows: Rows, first: int) -> Rows:
        """Run step k once more on rows [N, D] of one sequence; the first is number `first` of those in its pass."""
        count = len(rows)
        padded = max(count, self._minimum)
        self._in[:count], self._in[count:padded] = rows, 0
        row, position = one.place(k)
        self._place(k, [(row + first, position + first)], padded)
        self._pass(False, k + 1, one.slot, one.slot + 1, padded)()
        one.passes += 1
        one.layer_rows += count * self._layers[k]
        self.passes += 1
        self.rows += padded
        return self._out[:count]

    def _place(self, k: int, places: list[Place], rows: int) -> None:
        """Say where the slots of step k's next pass begin, and have room; steps of one token mostly share both."""
        if self.caches.make_room(max(row for row, _ in places) + rows, self.schedule[k].cache):
            self._bound = {key: bound for key, bound in self._bound.items() if key[1] != k + 1}
        width = len(places)
        if self._placed == (rows, places):
            return
        if width == 1:
            self._start[0], first = places[0]
            for row in range(rows):  # mostly one or two: cheaper than waking numpy's machinery with cold caches
                self._positions[row] = first + row
        else:
            self._start[:width] = [row for row, _ in places]
            positions = np.array([[position] for _, position in places]) + np.arange(rows)
            np.minimum(positions, self._last_position, out=self._positions[: width * rows].reshape(width, rows))
        self._placed = (rows, places)

    def make_room(self, rows: int) -> None:
        """Have room for `rows` tokens in each slot and step."""
        grown = [self.caches.make_room(rows, step.cache) for step in self.schedule]
        if any(grown):
            self._bound = {}

    def join(self, one: "Staircase") -> int:
        """Give the lowest free slot to `one`. Raises ValueError where there is none."""
        slot = self.slots.index(None)
        self.slots[slot] = weakref.ref(one)
        return slot

    def leave(self, one: "Staircase") -> None:
        """Free the slot of `one`, and memory that no other sequence is long enough for."""
        self.slots[one.slot] = None
        others = (self._at(slot) for slot in range(len(self.slots)))
        longest = max((other.length for other in others if other is not None), default=0)
        if self.caches.shrink(longest):
            self._bound, self._placed = {}, _NOWHERE
        self.caches.clear(one.slot, one.length + self.prefill_rows)

    def close_gap(self) -> bool:
        """Move the sequence in the highest slot to the lowest free one below it; returns whether there was such.

        A copy of a sequence's cache costs about what one row of one step does, a gap costs that in every pass.
        """
        free = self.slots.index(None) if None in self.slots else len(self.slots)
        highest = max((i for i, one in enumerate(self.slots) if one is not None), default=-1)
        one = self._at(highest)
        if highest < free or one is None:
            return False
        self.caches.move(highest, free, one.filled[0])
        self.caches.clear(highest, one.length + self.prefill_rows)
        for k, rows in enumerate(one.waiting):
            self.boundary[k][free, :rows] = self.boundary[k][highest, :rows]
        for watcher in one.watchers.values():
            watcher.move(highest, free)
        self.slots[free], self.slots[highest] = self.slots[highest], None
        one.slot = free
        return True

    def _at(self, slot: int) -> "Staircase | None":
        found = self.slots[slot]
        return None if found is None else found()

    def reset(self) -> None:
        """Forget everything. Short caches are kept, and with them their bindings, which take a token's time to make."""
        stale = bool(self._encoded)
        if stale or self.caches.rows > KEPT_ROWS:
            stale = self.caches.shrink(0) or stale
        if stale:
            self._bound, self._encoded = {}, {}
        for slot in range(len(self.slots)):
            self.caches.clear(slot, self.caches.rows)
        self._placed = _NOWHERE

    def _pass(self, kv: bool, k: int, first: int, last: int, rows: int) -> Pass:
        """The pass that fills boundary k (kv: only the caches before it) for a range of slots, from `_in`
        (or token ids) into `_out`.

        Bindings of decode passes are kept; those of prefill chunks of odd sizes are made anew.
        """
        bound = self._bound.get((kv, k, first, last, rows))
        if bound is None:
            bound = self._bind(kv, k, first, last, rows)
            if rows <= self._keep_bound or rows == self.prefill_rows:
                self._bound[kv, k, first, last, rows] = bound
        return bound

    def _bind(self, kv: bool, k: int, first: int, last: int, rows: int) -> Pass:
        width = last - first
        out = self._out[: width * rows].reshape(width, rows, -1)
        if k == 0:
            return self._graphs.embed.bind({c.TOKEN_IDS: self._ids[:rows].reshape(1, rows), c.HIDDEN_OUT: out})
        step = self.schedule[k - 1]
        engine = self._graphs.kv[step.segment] if kv else self._graphs.segments[step.segment]
        assert engine is not None, "a manifest has a K/V-only graph for each segment that can be skipped"
        return engine.bind({
            c.HIDDEN: self._in[: width * rows].reshape(width, rows, -1),
            c.HIDDEN_OUT: out,
            c.POSITIONS: self._positions[: width * rows].reshape(width, rows),
            c.WRITE_INDEX: self._start[:width],
            **self.caches.of_slots(step.cache, first, last),
            **self._graphs.factors_of(k - 1),
            **self._encoded,
        })  # fmt: skip
