"""The staircase: one sequence's progress through the schedule, and the passes that move it.

filled[k] tokens have been through step k, filled[0] >= filled[1] >= ...; the tokens between two steps are pending:
their hidden states wait in boundary k and join the next pass that goes that deep (catch_up). Given the tokens, every
cache row is what the full model would have written, whatever exited when.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.ort import OrtEngine, OrtPass
from eecompile.runtime.caches import Caches

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class LoadedGraphs:
    """A bundle's graphs, loaded; shared by all sessions."""

    embed: OrtEngine
    segments: list[OrtEngine]
    exits: list[OrtEngine]
    head: OrtEngine


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
        self._graphs, self._model = graphs, manifest.model
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
        self._bound: dict[tuple[int, int], OrtPass] = {}
        self._keep_bound = manifest.pending_cap + 2

    @property
    def pending(self) -> int:
        """Tokens that have not been through the last step."""
        return self.length - self.filled[-1]

    def reset(self) -> None:
        """Forget the sequence and free its caches."""
        self.rewind(0)
        self.passes = self.layer_rows = 0
        self.caches.resize(0)
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

    def append(self, tokens: list[int]) -> None:
        """Embed tokens (at most a pass's rows) into the first boundary."""
        n, first = len(tokens), self._waiting[0]
        self._ids[:n] = tokens
        self._embed(n)()
        self._boundary[0][first : first + n] = self._out[:n]
        self._waiting[0] = first + n
        self.length += n

    def run_step(self, k: int) -> Rows:
        """Run step k on everything that waits before it. Returns its output rows [R, D], newest last.

        The rows join the next boundary; after the last step they are finished: normalised and ready for the head.
        They are a view that the next pass of this step overwrites.
        """
        rows = self._waiting[k]
        padded = max(rows, self._minimum)
        start = self.filled[k]
        self._positions[:padded] = np.arange(start, start + padded)
        self._start[0] = start
        if self.caches.make_room(start + padded):
            self._bound = {}
        self._segment(k, padded)()
        self.filled[k] = start + rows
        self._waiting[k] = 0
        first = self._waiting[k + 1]
        self._boundary[k + 1][first : first + rows] = self._out[:rows]
        if k + 1 < len(self.schedule):
            self._waiting[k + 1] = first + rows
        self.passes += 1
        self.layer_rows += rows * self._graphs.segments[self.schedule[k].segment].info.layers
        return self._boundary[k + 1][first : first + rows]

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

    def _embed(self, rows: int) -> OrtPass:
        make = self._graphs.embed.bind
        return self._cached(-1, rows, lambda: make({
            c.TOKEN_IDS: self._ids[:rows].reshape(1, rows),
            c.HIDDEN_OUT: self._out[:rows].reshape(1, rows, -1),
        }))  # fmt: skip

    def _segment(self, k: int, rows: int) -> OrtPass:
        step = self.schedule[k]
        return self._cached(k, rows, lambda: self._graphs.segments[step.segment].bind({
            c.HIDDEN: self._boundary[k][:rows].reshape(1, rows, -1),
            c.HIDDEN_OUT: self._out[:rows].reshape(1, rows, -1),
            c.POSITIONS: self._positions[:rows].reshape(1, rows),
            c.WRITE_INDEX: self._start,
            **self.caches.tensors[step.cache],
        }))  # fmt: skip

    def _cached(self, k: int, rows: int, make: Callable[[], OrtPass]) -> OrtPass:
        """Bindings of decode passes are kept; those of prefill chunks of odd sizes are made anew."""
        bound = self._bound.get((k, rows))
        if bound is None:
            bound = make()
            if rows <= self._keep_bound or rows == self._most:
                self._bound[k, rows] = bound
        return bound
