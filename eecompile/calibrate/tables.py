"""What every exit says of every token of the documents, kept as a few numbers a token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.calibrate.documents import Documents, Split
from eecompile.calibrate.targets import DocumentTracer
from eecompile.errors import NumericError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.rules import HIGHEST
from eecompile.runtime.trace import DocumentTrace, ExitTrace, after
from eecompile.schema import Criterion, Thresholds

Bool = NDArray[np.bool_]
Float = NDArray[np.float32]
Progress = Callable[[str], None]
REPORT_EVERY: Final = 20  # documents between two calls of `progress`


@dataclass(frozen=True)
class ExitTable:
    """One exit over T tokens. `values`: what each of its gates goes by, float32 [T] (none for fixed and never).

    `usable` [T]: the head gave finite numbers, and a token among the candidates where there is a predictor. `agrees`
    [T]: the exit's token is the full model's.
    """

    layer: int
    gates: tuple[Criterion, ...]
    values: Mapping[Criterion, Float]
    usable: Bool
    agrees: Bool

    def passes_cheap(self, thresholds: Thresholds | None) -> Bool:
        """[T]: the head is run, since all the cheap gates say so. None: the exit is closed."""
        if thresholds is None or "never" in thresholds:
            return np.zeros(len(self.agrees), np.bool_)
        passed = np.ones(len(self.agrees), np.bool_)
        for criterion in set(thresholds) & set(c.CHEAP_CRITERIA):
            value = self.values[criterion].astype(np.float64)
            passed &= (value > thresholds[criterion]) & (value <= HIGHEST.get(criterion, 1.0))
        return passed

    def fires(self, thresholds: Thresholds | None) -> Bool:
        """[T]: every gate is strictly bolder than its threshold, as the runtime compares them; with a schedule, at the
        boldest that it can get in confident mode."""
        fired = self.passes_cheap(thresholds)
        if not fired.any():
            return fired
        fired = fired & self.usable
        for criterion, threshold in (thresholds or {}).items():
            if criterion in ("max_prob", "margin", "patience"):
                fired &= self.values[criterion] > np.float32(threshold)
            elif criterion in ("entropy", "delta"):
                fired &= self.values[criterion] < np.float32(threshold)
        return fired


@dataclass(frozen=True)
class TokenTable:
    """The T tokens of `count` documents. `documents` [T]: each token's document, ascending from 0. `layers`: L."""

    documents: NDArray[np.int64]
    count: int
    exits: list[ExitTable]
    layers: int

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first token of each document, and the number of tokens [count + 1]."""
        return np.searchsorted(self.documents, np.arange(self.count + 1))


def trace_tables(
    bundle: Bundle, documents: Documents, splits: Sequence[Split], progress: Progress
) -> dict[Split, TokenTable]:
    """Trace the documents of `splits` once. Memory: a few bytes a token and exit, and one document's trace.

    Raises NumericError where the full model computes no finite number, and as `Documents.stream`.
    """
    model, tracer = bundle.manifest.model, DocumentTracer(bundle, documents.max_tokens)
    kept: dict[Split, list[list[ExitTable]]] = {split: [] for split in splits}
    stream = documents.stream(bundle.text, vocab=model.vocab, context=model.context, splits=splits)
    for number, document in enumerate(stream):
        if number % REPORT_EVERY == 0:
            progress(f"trace document {number + 1}")
        trace = tracer.trace(document)
        check_finite(trace, documents)
        kept[document.split].append(_tables(bundle, after(trace, document.first)))
    return {split: _joined(parts, bundle) for split, parts in kept.items()}


def check_finite(trace: DocumentTrace, documents: Documents) -> None:
    """Raise NumericError where the full model gives no probabilities, since nothing can agree with it then."""
    if not np.isfinite(trace.final.max_prob).all():
        mend = "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"
        raise NumericError("the model's logits are not finite", where=f"a document of {documents.path}", mend=mend)


def _tables(bundle: Bundle, trace: DocumentTrace) -> list[ExitTable]:
    infos = bundle.manifest.exits
    return [
        _table(info.layer, tuple(info.gates), said, trace.final) for info, said in zip(infos, trace.exits, strict=True)
    ]


def _table(layer: int, gates: tuple[Criterion, ...], said: ExitTrace, final: ExitTrace) -> ExitTable:
    values = {gate: said.value(gate) for gate in gates if gate not in ("fixed", "never")}
    usable = np.isfinite(said.max_prob) & np.isfinite(said.margin) & np.isfinite(said.entropy)
    usable &= said.confirmed
    return ExitTable(layer, gates, values, usable, said.token == final.token)


def _joined(parts: list[list[ExitTable]], bundle: Bundle) -> TokenTable:
    lengths = [len(document[0].agrees) for document in parts]
    exits = []
    for g in range(len(bundle.manifest.exits) if parts else 0):
        tables = [document[g] for document in parts]
        values = {gate: np.concatenate([t.values[gate] for t in tables]) for gate in tables[0].values}
        usable, agrees = (np.concatenate([getattr(t, name) for t in tables]) for name in ("usable", "agrees"))
        exits.append(ExitTable(tables[0].layer, tables[0].gates, values, usable, agrees))
    documents = np.repeat(np.arange(len(parts)), lengths)
    return TokenTable(documents, len(parts), exits, bundle.manifest.model.layers)
