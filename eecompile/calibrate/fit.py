"""Fit exits on a frozen model in closed form: a translator of each exit's rows onto the finished ones; and a gate.

The translator is a ridge regression from the normalised hidden state at the exit to what the last layer gives after the
norm, as the tuned lens (Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023) but
solved instead of trained. Its penalty pulls towards the identity, that is the plain exit, which is what is left where
documents are few. Weighting tokens by the full model's certainty was tried on SmolLM2 and did not help.

The gate learns whether the translated exit agrees. On the documents that a translator was fitted on it agrees too
often, so the labels of every other document come from one that was fitted on the rest (two-fold cross-fitting).
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.documents import Documents, Split
from eecompile.calibrate.gate import UNITS, Bool, Float, train_gate
from eecompile.calibrate.tables import REPORT_EVERY, Progress, check_finite
from eecompile.calibrate.targets import DocumentTracer
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import Head

Double = NDArray[np.float64]

RIDGE: Final = 1e-2  # of the mean square of a dimension of the rows
MIN_DOCUMENTS: Final = 10
_ROWS: Final = 32768  # hidden states kept for the gates
_CACHE_BYTES: Final = 1 << 30
_PLAIN_ROWS: Final = 2048  # rows that the plain exit's agreement is measured on
_FIT: Final[tuple[Split, ...]] = ("fit",)
_HELD_OUT: Final = 5  # every fifth document only stops the gate's training


@dataclass(frozen=True)
class FittedExit:
    """An exit's affine adapter, weight [D, D] (in, out) and bias [D], and its gate's weights by part (None: no gate).

    plain_agreement: how often the model's own norm and head agree at this layer, on the fit documents.
    """

    layer: int
    weight: Float
    bias: Float
    gate: dict[str, Float] | None
    plain_agreement: float


class NormalEquations:
    """Sums over rows for a linear map with bias: memory (D + 1) x (2 D + 1) float64, whatever the number of rows."""

    def __init__(self, size: int) -> None:
        self.gram: Double = np.zeros((size + 1, size + 1))
        self.cross: Double = np.zeros((size + 1, size))

    def add(self, x: Float, y: Float) -> None:
        """Take in rows x [N, D] and their targets y [N, D]."""
        extended = np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
        self.gram += extended.T @ extended
        self.cross += extended.T @ y.astype(np.float64)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        total = NormalEquations(len(self.gram) - 1)
        total.gram, total.cross = self.gram + other.gram, self.cross + other.cross
        return total

    def solve(self, ridge: float = RIDGE) -> tuple[Float, Float]:
        """Weight [D, D] and bias [D] that minimise |x W + b - y|^2 + penalty |W - I|^2; the bias is free.

        ridge: the penalty as a share of the mean diagonal of the rows' Gram matrix.
        """
        size = len(self.gram) - 1
        penalty = np.full(size + 1, ridge * max(float(np.trace(self.gram[:size, :size])) / size, 1e-12))
        penalty[size] = 1e-9 * self.gram[size, size]
        identity = np.eye(size + 1, size)
        solved = identity + np.linalg.solve(self.gram + np.diag(penalty), self.cross - self.gram @ identity)
        return solved[:size].astype(np.float32), solved[size].astype(np.float32)


class RowCache:
    """Up to `capacity` rows of [exits, D] on disk as float16, drawn uniformly from all that were offered (a reservoir).

    final [n]: the full model's token of each kept row; document [n]: the number of its document.
    """

    def __init__(self, folder: Path, capacity: int, exits: int, size: int, seed: int) -> None:
        self._capacity, self._offered = capacity, 0
        with open(folder / "rows.f16", "wb") as file:
            file.truncate(2 * capacity * exits * size)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would be a crash on writing
                os.posix_fallocate(file.fileno(), 0, 2 * capacity * exits * size)
        self._rows = np.memmap(folder / "rows.f16", np.float16, "r+", shape=(capacity, exits, size))
        self._final, self._document = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self._random = np.random.default_rng(seed)

    def offer(self, rows: Float, final: NDArray[np.int64], document: int) -> None:
        """Take rows [N, exits, D] of one document, or some of them (Vitter's algorithm R)."""
        number = np.arange(self._offered, self._offered + len(rows))
        drawn = self._random.integers(0, number + 1)
        place = np.where(number < self._capacity, number, drawn)
        kept = place < self._capacity
        limit = np.finfo(np.float16).max
        self._rows[place[kept]] = np.clip(rows[kept], -limit, limit)
        self._final[place[kept]], self._document[place[kept]] = final[kept], document
        self._offered += len(rows)

    def __len__(self) -> int:
        return min(self._offered, self._capacity)

    def exit_rows(self, exit_: int) -> NDArray[np.float16]:
        """The kept rows of one exit [n, D], on disk."""
        return self._rows[: len(self), exit_]

    @property
    def final(self) -> NDArray[np.int64]:
        return self._final[: len(self)]

    @property
    def document(self) -> NDArray[np.int64]:
        return self._document[: len(self)]


def fit_adapters(
    bundle: Bundle, documents: Documents, *, gates: bool, units: int = UNITS, seed: int = 0,
    scratch: Path | None = None, progress: Progress = lambda stage: None,
) -> list[FittedExit]:  # fmt: skip
    """Fit every exit of `bundle` on the fit split of `documents`, shallow first.

    bundle: float32, with norm exits where exits are wanted. gates: train a learned gate of `units` too. scratch: where
    up to 1 GiB of hidden states lies meanwhile (default: the system's temporary directory).
    Memory: four (D + 1) x D float64 matrices an exit. Raises UsageError where there are fewer than 10 documents.
    """
    if bundle.manifest.precision != "fp32" or any(e.adapter != "norm" for e in bundle.manifest.exits):
        raise ValueError("exits are fitted on a float32 bundle with norm exits")
    exits, size = len(bundle.manifest.exits), bundle.manifest.model.hidden
    capacity = min(_ROWS, max(1, _CACHE_BYTES // (2 * size * exits)), documents.count * documents.max_tokens)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="rows-") as folder:
        cache = RowCache(Path(folder), capacity, exits, size, seed)
        halves = _accumulate(bundle, documents, cache, progress)
        judge = _Judge(bundle, cache)
        fitted = []
        for g, info in enumerate(bundle.manifest.exits):
            progress(f"fit exit {info.layer}")
            gate = _fit_gate(halves[g], judge, g, units, seed) if gates else None
            fitted.append(FittedExit(info.layer, *(halves[g][0] + halves[g][1]).solve(), gate, judge.plain(g)))
        return fitted


def _accumulate(
    bundle: Bundle, documents: Documents, cache: RowCache, progress: Progress
) -> list[tuple[NormalEquations, NormalEquations]]:
    """Stream the fit documents: normal equations of the even and of the odd ones for each exit, and the row cache."""
    model, count = bundle.manifest.model, 0
    tracer = DocumentTracer(bundle, documents.max_tokens, exits=False, boundaries=True)
    askers = bundle.askers(min(documents.max_tokens, model.context))
    halves = [(NormalEquations(model.hidden), NormalEquations(model.hidden)) for _ in askers]
    for document in documents.stream(bundle.text, vocab=model.vocab, context=model.context, splits=_FIT):
        if count % REPORT_EVERY == 0:
            progress(f"fit document {count + 1}")
        trace = tracer.trace(document)
        check_finite(trace, documents)
        *boundaries, finished = trace.boundaries or []
        rows = [asker(boundary)[0].copy() for asker, boundary in zip(askers, boundaries, strict=True)]
        for half, x in zip(halves, rows, strict=True):
            half[count % 2].add(x, finished)
        cache.offer(np.stack(rows, axis=1), trace.final.token, count)
        count += 1
    check_enough_to_fit(documents, count)
    return halves


def check_enough_to_fit(documents: Documents, count: int) -> None:
    """Raise UsageError where `count` documents in the fit split are too few for two halves and a held-out part."""
    if count < MIN_DOCUMENTS:
        mend = "give more documents: about a third of them are for fitting, short ones and copies are left out"
        what = f"{count} documents to fit on, {MIN_DOCUMENTS} are needed"
        raise UsageError(what, where=str(documents.path), mend=mend)


class _Judge:
    """Asks the bundle's head whether an exit's translated rows give the full model's token."""

    def __init__(self, bundle: Bundle, cache: RowCache) -> None:
        model = bundle.manifest.model
        self.cache, self._width = cache, bundle.manifest.prefill_rows
        self._head = Head(bundle.graphs.head, model.hidden, model.vocab, self._width, bundle.manifest.minimum_rows)

    def agrees(self, exit_: int, rows: NDArray[np.int64], weight: Float, bias: Float) -> Bool:
        """For the cached rows of these numbers [n]."""
        found = np.zeros(len(rows), np.bool_)
        for start in range(0, len(rows), self._width):
            chunk = rows[start : start + self._width]
            x = self.cache.exit_rows(exit_)[chunk].astype(np.float32)
            found[start : start + len(chunk)] = self._head(x @ weight + bias).token == self.cache.final[chunk]
        return found

    def plain(self, exit_: int) -> float:
        """Agreement without a translator, on some of the rows."""
        rows = np.arange(len(self.cache))[:: max(1, len(self.cache) // _PLAIN_ROWS)]
        size = self.cache.exit_rows(exit_).shape[1]
        identity, nothing = np.eye(size, dtype=np.float32), np.zeros(size, np.float32)
        return float(self.agrees(exit_, rows, identity, nothing).mean())


def _fit_gate(
    halves: tuple[NormalEquations, NormalEquations], judge: _Judge, exit_: int, units: int, seed: int
) -> dict[str, Float]:
    document = judge.cache.document
    agrees = np.zeros(len(document), np.bool_)
    for parity, other in enumerate(reversed(halves)):  # even documents are judged by what the odd ones taught
        own = np.flatnonzero(document % 2 == parity)
        agrees[own] = judge.agrees(exit_, own, *other.solve())
    return train_gate(judge.cache.exit_rows(exit_), agrees, document % _HELD_OUT == 0, units=units, seed=seed)
