"""Asking a head: bound passes over a few rows, with numpy in and out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.interface import Engine, Pass
from eecompile.runtime.staircase import LoadedGraphs

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Decisions:
    """The head's answer for N rows: views that the next pass of the same width overwrites. `ids`: the tokens of the
    logits' columns, None where they are all tokens in order."""

    token: NDArray[np.int64]
    max_prob: Float
    margin: Float
    entropy: Float
    exit_flag: NDArray[np.bool_]
    logits: Float | None
    ids: NDArray[np.int64] | None = None


class Head:
    """A head over up to `rows` rows, with `vocab` logits. Not thread-safe; the engine is shared."""

    def __init__(
        self, engine: Engine, hidden: int, vocab: int, rows: int, minimum: int,
        ids: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._vocab, self._minimum, self._ids = engine, vocab, minimum, ids
        self._memory = engine.memory
        rows = max(rows, minimum)
        self._hidden: Float = self._memory.rows((rows, hidden))
        self._thresholds: Float = self._memory.rows((rows, len(c.NO_BOUND)))
        self._thresholds[:] = c.NO_BOUND
        self._bounded = False
        self._logits: Float | None = None
        self._bound: dict[tuple[int, bool], tuple[Pass, Decisions]] = {}

    def __call__(self, rows: Float, bounds: Float | None = None, *, logits: bool = False) -> Decisions:
        """Decide rows [N, D] (normalised) against bounds [3] or [N, 3] (default: none); logits [N, V] on request."""
        n = len(rows)
        self._hidden[:n] = rows
        if bounds is not None or self._bounded:
            self._thresholds[:] = c.NO_BOUND
            self._bounded = bounds is not None
        if bounds is not None:
            self._thresholds[:n] = bounds
        run, decisions = self._binding(n, logits)
        run()
        return decisions

    def _binding(self, n: int, logits: bool) -> tuple[Pass, Decisions]:
        if (n, logits) not in self._bound:
            padded = max(n, self._minimum)
            floats = {name: self._memory.rows((padded,)) for name in (c.MAX_PROB, c.MARGIN, c.ENTROPY)}
            buffers: dict[str, NDArray[Any]] = {
                c.HIDDEN: self._hidden[:padded],
                c.THRESHOLDS: self._thresholds[:padded],
                c.TOKEN: self._memory.rows((padded,), np.int64),
                c.EXIT_FLAG: self._memory.rows((padded,), np.bool_),
                **floats,
            }
            if logits:
                buffers[c.LOGITS] = self._logit_rows()[:padded]
            view = {name: buffer[:n] for name, buffer in buffers.items()}
            decisions = Decisions(
                view[c.TOKEN], view[c.MAX_PROB], view[c.MARGIN], view[c.ENTROPY], view[c.EXIT_FLAG],
                view.get(c.LOGITS), self._ids,
            )  # fmt: skip
            self._bound[n, logits] = (self._engine.bind(buffers), decisions)
        return self._bound[n, logits]

    def _logit_rows(self) -> Float:
        """One buffer for logits of any width, made when first asked for (V may be large)."""
        if self._logits is None:
            self._logits = self._memory.rows((len(self._hidden), self._vocab))
        return self._logits


def full_head(manifest: Manifest, graphs: LoadedGraphs, rows: int) -> Head:
    """The model's head, over up to `rows` rows."""
    return Head(graphs.head, manifest.model.hidden, manifest.model.vocab, rows, manifest.minimum_rows)


def heads_by_name(manifest: Manifest, graphs: LoadedGraphs, rows: int) -> dict[str, Head]:
    """The model's head, "full", and the small ones, each over up to `rows` rows."""
    size, vocab, minimum = manifest.model.hidden, manifest.model.vocab, manifest.minimum_rows
    heads = {c.FULL_HEAD: full_head(manifest, graphs, rows)}
    for head in manifest.heads:
        ids = np.array(head.tokens, np.int64) if head.tokens else None
        heads[head.name] = Head(graphs.heads[head.name], size, head.rows(vocab), rows, minimum, ids)
    return heads


def head_graph(name: str) -> str:
    """What profiles and benches call the graph of a head."""
    return "head" if name == c.FULL_HEAD else f"head_{name}"
