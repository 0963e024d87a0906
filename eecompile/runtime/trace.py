"""What every exit would say of every token of a document, teacher-forced: the table that calibration, bench and
verification read.

With the `catch_up` rule a cache row is the full model's whatever exits, so one pass over the document (a chunk of rows
at a time) tells what any policy would have done at each token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import Head
from eecompile.runtime.staircase import Staircase

Float = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExitTrace:
    """One exit over T tokens: its arg-max token, the learned gate's confidence (1 without one), and the head's
    max_prob, margin and entropy; each [T]."""

    token: Ints
    confidence: Float
    max_prob: Float
    margin: Float
    entropy: Float


@dataclass(frozen=True)
class DocumentTrace:
    """A document of T tokens. Row t is about the token that follows ids[t]. `final` is the full model's own.

    `boundaries`, where asked for: the hidden state at each exit [T, D] and, last, the finished rows [T, D].
    """

    ids: Ints
    final: ExitTrace
    exits: list[ExitTrace]
    boundaries: list[Float] | None = None


class Tracer:
    """Traces documents through an open bundle. Not thread-safe; memory is one sequence's cache and one pass's rows."""

    def __init__(self, bundle: Bundle, *, exits: bool = True, boundaries: bool = False) -> None:
        manifest = bundle.manifest
        self._rows, self._keep = manifest.prefill_rows, boundaries
        self._stairs = Staircase(manifest, bundle.graphs)
        model = manifest.model
        self._head = Head(bundle.graphs.head, model.hidden, model.vocab, self._rows, manifest.minimum_rows)
        self._askers = bundle.askers(self._rows) if exits else []
        self._stairs.watch(self._askers, range(len(self._askers)))

    def trace(self, ids: Sequence[int]) -> DocumentTrace:
        """Trace one document of at least one token, at most the context."""
        self._stairs.reset()
        chunks = [self._chunk(list(ids[i : i + self._rows])) for i in range(0, len(ids), self._rows)]
        exits = [_joined([chunk[1][g] for chunk in chunks]) for g in range(len(self._askers))]
        boundaries = None
        if self._keep:
            boundaries = [np.concatenate([chunk[2][k] for chunk in chunks]) for k in range(len(chunks[0][2]))]
        return DocumentTrace(np.asarray(ids, np.int64), _joined([chunk[0] for chunk in chunks]), exits, boundaries)

    def _chunk(self, ids: list[int]) -> tuple[ExitTrace, list[ExitTrace], list[Float]]:
        self._stairs.append(ids)
        exits: list[ExitTrace] = []
        kept: list[Float] = []
        for k, step in enumerate(self._stairs.schedule):
            rows = self._stairs.run_step(k)
            if self._keep and (step.exit is not None or k == len(self._stairs.schedule) - 1):
                kept.append(rows.copy())
            if step.exit is not None and self._askers:
                hidden, confidence = self._askers[step.exit](rows)
                exits.append(self._decided(hidden, confidence.copy()))
        return self._decided(rows, np.ones(len(rows), np.float32)), exits, kept

    def _decided(self, hidden: Float, confidence: Float) -> ExitTrace:
        d = self._head(hidden)
        return ExitTrace(d.token.copy(), confidence, d.max_prob.copy(), d.margin.copy(), d.entropy.copy())


def _joined(parts: list[ExitTrace]) -> ExitTrace:
    fields = ("token", "confidence", "max_prob", "margin", "entropy")
    return ExitTrace(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
