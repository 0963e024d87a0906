"""The staircase: one sequence's progress through the schedule, and the passes that move it.

filled[k] tokens have been through step k, filled[0] >= filled[1] >= ...; the tokens between two steps are pending:
their hidden states wait in boundary k and join the next pass that goes that deep (catch_up). Given the tokens, every
cache row is what the full model would have written, whatever exited when.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.cycles import CycleGate
from eecompile.bundle.factors import Factors
from eecompile.bundle.manifest import Manifest
from eecompile.engines.ort import OrtEngine, OrtPass
from eecompile.runtime.caches import Caches
from eecompile.runtime.cycles import Repeater
from eecompile.runtime.heads import ExitAsker
from eecompile.runtime.modules import LayerAsker

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class LoadedGraphs:
    """A bundle's graphs, loaded; shared by all sessions. factors: LoRA by step and input; none for no step's. cycles:
    gates that have a step run again, by step."""

    embed: OrtEngine
    segments: list[OrtEngine]
    exits: list[OrtEngine]
    head: OrtEngine
    factors: Sequence[Factors] = ()
    cycles: Mapping[int, CycleGate] = field(default_factory=dict)

    def factors_of(self, step: int) -> Factors:
        """What step number `step` binds beside rows and caches."""
        return self.factors[step] if self.factors else {}


class Staircase:
    """One sequence: its caches, its pending rows, and passes over them. Not thread-safe.

    Costs per sequence: 2 x layers x KV x d float32 for each token, and an eighth more.
    """

    def __init__(self, manifest: Manifest, graphs: LoadedGraphs) -> None:
        self.schedule = manifest.schedule
        self.filled = [0] * len(self.schedule)
        self.length = 0  # tokens embedded
        self.passes = 0
        self.layer_rows = 0
        self._graphs = graphs
        self.watchers: dict[int, LayerAsker] = {}
        self._repeaters = {k: Repeater(gate) for k, gate in graphs.cycles.items()}
        self._minimum, self._most = manifest.minimum_rows, manifest.prefill_rows
        rows = max(manifest.prefill_rows, manifest.pending_cap + 1, manifest.minimum_rows)
        width, steps = manifest.model.hidden, len(self.schedule)
        self._boundary = [np.zeros((rows, width), np.float32) for _ in range(steps + 1)]
        self._waiting = [0] * (steps + 1)  # rows in each boundary; finished rows, in the last, wait for nothing
        self._out = np.zeros((rows, width), np.float32)
        self._ids = np.zeros(rows, np.int64)
        self._positions = np.zeros(rows, np.int64)
        self._start = np.zeros(1, np.int64)
        self.caches = Caches(manifest.caches, manifest.model.kv_heads, manifest.model.head_dim)
        self._bound: dict[tuple[int, int, bool], OrtPass] = {}
        self._placed = (-1, 0)
        self._layers = [graphs.segments[step.segment].info.layers for step in manifest.schedule]
        self._keep_bound = manifest.pending_cap + 2

    @property
    def pending(self) -> int:
        """Tokens that have not been through the last step."""
        return self.length - self.filled[-1]

    def watch(self, askers: Sequence[ExitAsker], open_exits: Collection[int]) -> None:
        """From now on, let those of the exits that attend to earlier rows see the rows that come by."""
        self.watchers = {
            k: asker
            for k, step in enumerate(self.schedule)
            if askers and step.exit is not None and step.exit in open_exits
            if isinstance(asker := askers[step.exit], LayerAsker)
        }

    def reset(self) -> None:
        """Forget the sequence and free its caches."""
        self.rewind(0)
        for watcher in self.watchers.values():
            watcher.reset()
        self.passes = self.layer_rows = 0
        self.caches.resize(0)
        self._placed = (-1, 0)
        for rows in self._boundary:
            rows.fill(0)  # padding is read from here: what a failed sequence left may not be finite
        self._bound = {}

    def rewind(self, length: int) -> None:
        """Drop every token from position `length` on; nothing may be pending before it."""
        if not 0 <= length <= min(self.filled):
            raise ValueError(f"length {length} is not one at which nothing is pending")
        self.length = length
        self.filled = [min(f, length) for f in self.filled]
        self._waiting = [0] * len(self._waiting)
        for watcher in self.watchers.values():
            watcher.rewind(length)

    def append(self, tokens: list[int]) -> None:
        """Embed tokens (at most a pass's rows) into the first boundary."""
        self._ids[: len(tokens)] = tokens
        self._pass_into(0, len(tokens), len(tokens))
        self.length += len(tokens)

    def run_step(self, k: int) -> Rows:
        """Run step k on everything that waits before it. Returns its output rows [R, D], newest last.

        The rows join the next boundary; after the last step they are finished: normalised and ready for the head.
        They are a view that the next pass of this step overwrites.
        """
        rows, start = self._waiting[k], self.filled[k]
        padded = max(rows, self._minimum)
        self._place(start, padded)
        self._waiting[k] = 0
        out = self._pass_into(k + 1, rows, padded)
        if k in self._repeaters:
            self._repeaters[k].settle(self._boundary[k][:rows], out, partial(self._again, k, start))
        self.filled[k] = start + rows
        if k in self.watchers:
            self.watchers[k].offer(out)
        self.passes += 1
        self.layer_rows += rows * self._layers[k]
        return out

    def _again(self, k: int, start: int, rows: Rows, first: int) -> Rows:
        """Run step k once more on rows [N, D]; the first is number `first` of the pass that began at `start`."""
        count = len(rows)
        padded = max(count, self._minimum)
        self._place(start + first, padded)
        self._boundary[k][:count] = rows
        self._pass(k + 1, padded, self._out, False)()
        self.passes += 1
        self.layer_rows += count * self._layers[k]
        return self._out[:count]

    def _place(self, start: int, rows: int) -> None:
        """Set the positions of the next pass and have room for them; steps of one token mostly share both."""
        if self._placed == (start, rows):
            return
        for row in range(rows):  # mostly one or two: cheaper than waking numpy's machinery with cold caches
            self._positions[row] = start + row
        self._start[0] = start
        self._placed = (start, rows)
        if self.caches.make_room(start + rows):
            self._bound = {}

    def _pass_into(self, k: int, rows: int, padded: int) -> Rows:
        """Run what fills boundary k; returns the new rows there. Into an empty boundary the graph writes by itself."""
        first, boundary = self._waiting[k], self._boundary[k]
        self._pass(k, padded, boundary if first == 0 else self._out, first == 0)()
        if first:
            boundary[first : first + rows] = self._out[:rows]
        if k < len(self.schedule):
            self._waiting[k] = first + rows
        return boundary[first : first + rows]

    def run_full(self) -> Rows:
        """Run every step on what is pending; returns the finished rows [R, D] of all tokens that were not deep yet."""
        first = next(k for k, n in enumerate(self._waiting) if n)
        for k in range(first, len(self.schedule)):
            rows = self.run_step(k)
        return rows

    def prefill(self, tokens: list[int]) -> Rows:
        """Run tokens through every step, a pass's rows at a time; returns the last token's finished row [1, D]."""
        if self.caches.make_room(self.length + max(len(tokens), self._minimum)):
            self._bound = {}
        for start in range(0, len(tokens), self._most):
            self.append(tokens[start : start + self._most])
            rows = self.run_full()
        return rows[-1:]

    def _pass(self, k: int, rows: int, out: Rows, direct: bool) -> OrtPass:
        """The pass that fills boundary k from rows of the one before it, or from token ids, bound to write to `out`.

        Bindings of decode passes are kept; those of prefill chunks of odd sizes are made anew.
        """
        bound = self._bound.get((k, rows, direct))
        if bound is None:
            bound = self._bind(k, rows, out[:rows].reshape(1, rows, -1))
            if rows <= self._keep_bound or rows == self._most:
                self._bound[k, rows, direct] = bound
        return bound

    def _bind(self, k: int, rows: int, out: Rows) -> OrtPass:
        if k == 0:
            return self._graphs.embed.bind({c.TOKEN_IDS: self._ids[:rows].reshape(1, rows), c.HIDDEN_OUT: out})
        step = self.schedule[k - 1]
        return self._graphs.segments[step.segment].bind({
            c.HIDDEN: self._boundary[k - 1][:rows].reshape(1, rows, -1),
            c.HIDDEN_OUT: out,
            c.POSITIONS: self._positions[:rows].reshape(1, rows),
            c.WRITE_INDEX: self._start,
            **self.caches.tensors[step.cache],
            **self._graphs.factors_of(k - 1),
        })  # fmt: skip
