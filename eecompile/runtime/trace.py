"""What every exit would say of every token of a document, teacher-forced: the table that calibration, bench and
verification read.

With the `catch_up` rule a cache row is the full model's whatever exits, so one pass over the document (a chunk of rows
at a time) tells what any policy would have done at each token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import Decisions
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.walk import Walk
from eecompile.schema import Criterion

Bool = NDArray[np.bool_]
Float = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExitTrace:
    """One exit over T tokens: the arg-max of its head, and what each gate goes by, whichever gates it has; each [T].

    confidence: the learned gate's (1 without one). more: saturation, router, predictor and patience, where the exit has
    them. confirmed: whether the token is one of a predictor's candidates (True without one).
    """

    token: Ints
    confidence: Float
    max_prob: Float
    margin: Float
    entropy: Float
    more: Mapping[Criterion, Float]
    confirmed: Bool

    def value(self, criterion: Criterion) -> Float:
        """What the gate goes by [T]."""
        own = {"learned": self.confidence, "max_prob": self.max_prob, "margin": self.margin, "entropy": self.entropy}
        return own[criterion] if criterion in own else self.more[criterion]


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
        self._exits, self._heads = manifest.exits, bundle.heads(self._rows)
        self._askers = bundle.askers(self._rows) if exits else []
        self._stairs.watch(self._askers, range(len(self._askers)))

    def trace(self, ids: Sequence[int], source: Sequence[int] | None = None) -> DocumentTrace:
        """Trace one document of at least one token, at most the context; `source` is an encoder-decoder's."""
        self._stairs.begin(list(ids if source is None else source))
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
        walk = Walk(len(ids))
        for k, step in enumerate(self._stairs.schedule):
            rows = self._stairs.run_step(k)
            if self._keep and (step.exit is not None or k == len(self._stairs.schedule) - 1):
                kept.append(rows.copy())
            if step.exit is not None and self._askers:
                exits.append(self._ask(step.exit, rows, walk))
        final, ones = self._heads[c.FULL_HEAD](rows), np.ones(len(rows))
        return _said(final, ones.astype(np.float32), {}, ones.astype(np.bool_)), exits, kept

    def _ask(self, exit_: int, rows: Float, walk: Walk) -> ExitTrace:
        """Ask an exit and its head about every row, whatever its cheap gates say."""
        shape, said = self._exits[exit_], self._askers[exit_](rows, walk)
        decided = self._heads[shape.head](said.hidden)
        more: dict[Criterion, Float] = {k: v.copy() for k, v in said.values.items() if k != "learned"}
        streak = walk.vote(exit_, decided.token)
        if "patience" in shape.gates:
            more["patience"] = streak.astype(np.float32)
        confirmed = np.ones(len(rows), np.bool_)
        if said.candidates is not None:
            confirmed = (said.candidates == decided.token[:, None]).any(axis=1)
        return _said(decided, said.confidence.copy(), more, confirmed)


def after(trace: DocumentTrace, first: int) -> DocumentTrace:
    """What the trace says of the rows from `first` on."""
    if not first:
        return trace
    boundaries = None if trace.boundaries is None else [rows[first:] for rows in trace.boundaries]
    return DocumentTrace(
        trace.ids[first:], _from(trace.final, first), [_from(e, first) for e in trace.exits], boundaries
    )


def _from(said: ExitTrace, first: int) -> ExitTrace:
    names = ("token", "confidence", "max_prob", "margin", "entropy", "confirmed")
    own = {name: getattr(said, name)[first:] for name in names}
    return ExitTrace(**own, more={gate: value[first:] for gate, value in said.more.items()})


def _said(d: Decisions, confidence: Float, more: Mapping[Criterion, Float], confirmed: Bool) -> ExitTrace:
    values = (d.max_prob.copy(), d.margin.copy(), d.entropy.copy())
    return ExitTrace(d.token.copy(), confidence, *values, more, confirmed)


def _joined(parts: list[ExitTrace]) -> ExitTrace:
    def whole(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(arrays))

    names = ("token", "confidence", "max_prob", "margin", "entropy", "confirmed")
    own = {name: whole(getattr(part, name) for part in parts) for name in names}
    return ExitTrace(**own, more={gate: whole(part.more[gate] for part in parts) for gate in parts[0].more})
