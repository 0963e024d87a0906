"""Exits with a decoder layer of their own: a step of the staircase beside the main path.

Such an exit attends to the rows of all earlier tokens at its boundary. It gets to see them as they come by and keeps
them waiting; asked about the newest, it runs what waits in one pass, as a segment does, into a cache of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.ort import OrtEngine, OrtPass
from eecompile.runtime.askers import ExitAsker, ExitSaid, Float
from eecompile.runtime.caches import Caches
from eecompile.runtime.walk import Walk


class LayerAsker(ExitAsker):
    """One exit with a layer, over one sequence. Not thread-safe; the engine is shared.

    `filled` rows are in its cache, `waiting` behind them. Memory: that cache, and a prefill pass's rows.
    """

    def __init__(self, engine: OrtEngine, manifest: Manifest, exit_: int, weights: Mapping[str, Float]) -> None:
        self._manifest, self._minimum = manifest, manifest.minimum_rows
        rows = max(manifest.prefill_rows, manifest.pending_cap + 1, self._minimum)
        super().__init__(engine, manifest.exits, exit_, manifest.model.hidden, rows, weights)
        self._most, self._keep_bound = rows, manifest.pending_cap + 2
        self.filled = self.waiting = 0
        self._positions, self._start = np.zeros(rows, np.int64), np.zeros(1, np.int64)
        self._caches = Caches([engine.info])
        self._passes: dict[int, OrtPass] = {}

    def __call__(self, rows: Float, walk: Walk | None = None) -> ExitSaid:
        """As ExitAsker, for the newest N rows that were offered, which `rows` [N, D] are; all that wait are run."""
        first, last = self.waiting - len(rows), self.waiting
        if first < 0:
            raise ValueError(f"{len(rows)} rows asked of an exit where {last} wait")
        walk = Walk(len(rows)) if walk is None else walk
        view = {name: buffer[first:last] for name, buffer in self._buffers.items()}
        self._remind(walk, view)
        self._run()
        self._note(walk, rows, view)
        return self._routed(self._said(view), walk)

    def for_sequence(self) -> "LayerAsker":
        """The same exit over another sequence."""
        return LayerAsker(self._engine, self._manifest, self._exit, self._weights)

    def offer(self, rows: Float) -> None:
        """Take in the rows [R, D] that come next at this exit's boundary, R at most a prefill pass's."""
        if self.waiting + len(rows) > self._most:
            self._run()
        self._buffers[c.HIDDEN][self.waiting : self.waiting + len(rows)] = rows
        self.waiting += len(rows)

    def rewind(self, length: int) -> None:
        """Drop every row from position `length` on."""
        self.waiting = max(0, min(self.waiting, length - self.filled))
        self.filled = min(self.filled, length)

    def reset(self) -> None:
        """Forget the sequence and free its cache."""
        self.rewind(0)
        self._caches.resize(0)
        for buffer in self._buffers.values():
            buffer.fill(0)  # padding is read from here: what a failed sequence left may not be finite
        self._passes = {}

    def _run(self) -> None:
        """Run what waits."""
        if not self.waiting:
            return
        padded = max(self.waiting, self._minimum)
        self._positions[:padded] = np.arange(self.filled, self.filled + padded)
        self._start[0] = self.filled
        if self._caches.make_room(self.filled + padded):
            self._passes = {}
        run = self._passes.get(padded) or self._bind(padded)
        if padded <= self._keep_bound or padded == self._most:
            self._passes[padded] = run
        run()
        self.filled, self.waiting = self.filled + self.waiting, 0

    def _bind(self, rows: int) -> OrtPass:
        buffers: dict[str, NDArray[Any]] = {name: buffer[:rows] for name, buffer in self._buffers.items()}
        buffers |= {
            c.HIDDEN: buffers[c.HIDDEN].reshape(1, rows, -1), c.POSITIONS: self._positions[:rows].reshape(1, rows),
            c.WRITE_INDEX: self._start, **self._caches.tensors[0], **self._weights,
        }  # fmt: skip
        return self._engine.bind(buffers)
