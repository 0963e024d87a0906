"""The uncut model, decoded greedily: one graph from token to decision, driven by the rules of the staircase.

It reads the bundle's own weight files and pads, chunks and grows its caches as a session does, so that what differs
from full mode is the cut alone: the passes, the copies at the boundaries and the loop over segments.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bench.timing import PassLog, TimedEngine
from eecompile.bundle.factors import uncut_factors
from eecompile.engines.interface import Engine, Pass
from eecompile.engines.ort import OrtEngine
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.caches import Caches
from eecompile.runtime.source import Encoded, read_prompt


class UncutModel:
    """reference.onnx of a bundle over one sequence. Not thread-safe. Loaded on construction, for bench alone.

    Memory: the weights once more (an engine keeps its own copy) and the caches of one sequence.
    Raises UsageError where the bundle has no uncut graph, IntegrityError where it cannot be loaded.
    """

    def __init__(self, bundle: Bundle, log: PassLog | None = None) -> None:
        manifest = bundle.manifest
        info = manifest.graphs.reference
        if info is None:
            raise UsageError("the bundle has no uncut graph", where=str(bundle.files.path))
        engine = OrtEngine(bundle.files.path / info.path, info)
        self._manifest, self._encoder = manifest, bundle.graphs.encoder
        self._encoded: Encoded = {}
        self._engine: Engine = engine if log is None else TimedEngine(engine, "uncut", log)
        self._minimum, self._most = manifest.minimum_rows, manifest.prefill_rows
        rows = max(self._most, self._minimum)
        self._length = 0
        self._ids, self._positions = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self._start = np.zeros(1, np.int64)
        self._thresholds = np.tile(np.array(c.NO_BOUND, np.float32), (rows, 1))
        self._token, self._flag = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        self._measures = {name: np.zeros(rows, np.float32) for name in c.HEAD_CRITERIA}
        self._caches = Caches([info])
        self._factors = uncut_factors(manifest, [bundle.graphs.factors_of(k) for k in range(len(manifest.schedule))])
        self._bound: dict[int, Pass] = {}

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """Continue `prompt` by `tokens` tokens, whatever they are; returns them and the seconds after the first."""
        self._length, self._bound = 0, {}
        self._caches.resize(0)
        first, self._encoded = read_prompt(self._manifest, self._encoder, list(prompt))
        self._caches.make_room(max(len(first), self._minimum))
        for start in range(0, len(first), self._most):
            token = self._run(first[start : start + self._most])
        ids = [token]
        began = perf_counter()
        while len(ids) < tokens:
            ids.append(self._run(ids[-1:]))
        return ids, perf_counter() - began

    def _run(self, ids: Sequence[int]) -> int:
        """One pass over the next tokens; returns the one that follows them."""
        rows, start = len(ids), self._length
        padded = max(rows, self._minimum)
        self._ids[:rows] = ids
        self._positions[:padded] = np.arange(start, start + padded)
        self._start[0] = start
        if self._caches.make_room(start + padded):
            self._bound = {}
        if padded not in self._bound:
            self._bound[padded] = self._bind(padded)
        self._bound[padded]()
        self._length += rows
        return int(self._token[rows - 1])

    def _bind(self, rows: int) -> Pass:
        buffers: dict[str, NDArray[Any]] = {
            c.TOKEN_IDS: self._ids[:rows].reshape(1, rows), c.POSITIONS: self._positions[:rows].reshape(1, rows),
            c.WRITE_INDEX: self._start, c.THRESHOLDS: self._thresholds[:rows], c.TOKEN: self._token[:rows],
            c.EXIT_FLAG: self._flag[:rows], **self._caches.tensors[0], **self._factors, **self._encoded,
        }  # fmt: skip
        measures = {name: values[:rows] for name, values in self._measures.items()}
        return self._engine.bind({**buffers, **measures})
