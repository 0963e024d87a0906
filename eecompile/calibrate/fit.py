"""Fit exits on a frozen model in closed form: a translator of each exit's rows onto the finished ones; heads and gates.

The translator is a ridge regression from the normalised hidden state at the exit to what the last layer gives after the
norm, as the tuned lens (Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023) but
solved instead of trained. Its penalty pulls towards the identity, that is the plain exit, which is what is left where
documents are few. Weighting tokens by the full model's certainty was tried on SmolLM2 and did not help.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from eecompile.calibrate.documents import Documents, Split
from eecompile.calibrate.fit_gates import Evidence, Judge, fit_gates
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.rows import NormalEquations, RowCache
from eecompile.calibrate.small_heads import HeadMatrix, SmallHead, fit_low_rank, fit_shortlist
from eecompile.calibrate.tables import REPORT_EVERY, Float, Progress, check_finite
from eecompile.calibrate.targets import DocumentTracer
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.trace import after

MIN_DOCUMENTS: Final = 10
_ROWS: Final = 32768  # hidden states kept for the gates
_CACHE_BYTES: Final = 1 << 30
_FIT: Final[tuple[Split, ...]] = ("fit",)


@dataclass(frozen=True)
class FittedExit:
    """An exit's affine adapter, weight [D, D] (in, out) and bias [D], and its gates' weights by "<gate>.<part>".

    plain_agreement: how often the model's own norm and head agree at this layer, on the fit documents.
    """

    layer: int
    weight: Float
    bias: Float
    gates: Mapping[str, Float]
    plain_agreement: float


@dataclass(frozen=True)
class Fitted:
    """All that was fitted: exits, shallow first, and the small heads of the plan."""

    exits: list[FittedExit]
    heads: list[SmallHead]


def fit_adapters(
    bundle: Bundle, documents: Documents, plan: ExitPlan, matrix: HeadMatrix, *, seed: int = 0,
    scratch: Path | None = None, progress: Progress = lambda stage: None,
) -> Fitted:  # fmt: skip
    """Fit every exit of `bundle` on the fit split of `documents`.

    bundle: float32, with norm exits where exits are wanted. plan: the gates and head that each of them gets. matrix:
    the model's head. scratch: where up to 1 GiB of hidden states lies meanwhile, twice that for a router (default: the
    system's temporary directory).
    Memory: four (D + 1) x D float64 matrices an exit. Raises UsageError where there are fewer than 10 documents.
    """
    if bundle.manifest.precision != "fp32" or any(e.adapter != "norm" for e in bundle.manifest.exits):
        raise ValueError("exits are fitted on a float32 bundle with norm exits")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="rows-") as folder:
        found = _accumulate(bundle, documents, plan, Path(folder), seed, progress)
        whole = [even + odd for even, odd in found.halves]
        maps = [equations.solve() for equations in whole]
        heads = _heads(plan, matrix, found, whole, maps)
        judge = Judge(bundle, found.cache, {head.shape.name: head for head in heads})
        gates = fit_gates(plan, found, judge, seed, progress)
        exits = [
            FittedExit(info.layer, *maps[g], gates[g], judge.plain(g)) for g, info in enumerate(bundle.manifest.exits)
        ]
    return Fitted(exits, heads)


def _heads(
    plan: ExitPlan, matrix: HeadMatrix, found: Evidence, whole: list[NormalEquations], maps: list[tuple[Float, Float]]
) -> list[SmallHead]:
    """The small heads that the plan asks for: the low-rank one is best for the rows that the translators give."""
    heads = []
    if "shortlist" in plan.heads:
        heads.append(fit_shortlist(matrix, found.counts, plan.tokens))
    if "low_rank" in plan.heads:
        heads.append(fit_low_rank(matrix, list(zip(whole, maps, strict=True)), plan.rank))
    return heads


def _accumulate(
    bundle: Bundle, documents: Documents, plan: ExitPlan, folder: Path, seed: int, progress: Progress
) -> Evidence:
    """Stream the fit documents: normal equations of the even and of the odd ones for each exit, rows, token counts."""
    model, count = bundle.manifest.model, 0
    exits = len(bundle.manifest.exits)
    capacity = min(_ROWS, max(1, _CACHE_BYTES // (2 * model.hidden * exits)), documents.count * documents.max_tokens)
    cache = RowCache(folder / "normalised", capacity, exits, model.hidden, seed)
    raw = RowCache(folder / "raw", capacity, 1, model.hidden, seed) if "router" in plan.gates else None
    tracer = DocumentTracer(bundle, documents.max_tokens, exits=False, boundaries=True)
    askers = bundle.askers(min(documents.max_tokens, model.context))
    halves = [(NormalEquations(model.hidden), NormalEquations(model.hidden)) for _ in askers]
    counts = np.zeros(model.vocab, np.int64)
    for document in documents.stream(bundle.text, vocab=model.vocab, context=model.context, splits=_FIT):
        if count % REPORT_EVERY == 0:
            progress(f"fit document {count + 1}")
        trace = after(tracer.trace(document), document.first)
        check_finite(trace, documents)
        *boundaries, finished = trace.boundaries or []
        rows = [asker(boundary).hidden.copy() for asker, boundary in zip(askers, boundaries, strict=True)]
        for half, x in zip(halves, rows, strict=True):
            half[count % 2].add(x, finished)
        cache.offer(np.stack(rows, axis=1), trace.final.token, count)
        if raw is not None:
            raw.offer(boundaries[0][:, None], trace.final.token, count)
        counts += np.bincount([*trace.ids, *trace.final.token], minlength=model.vocab)
        count += 1
    check_enough_to_fit(documents, count)
    return Evidence(halves, cache, raw, counts)


def check_enough_to_fit(documents: Documents, count: int) -> None:
    """Raise UsageError where `count` documents in the fit split are too few for two halves and a held-out part."""
    if count < MIN_DOCUMENTS:
        mend = "give more documents: about a third of them are for fitting, short ones and copies are left out"
        what = f"{count} documents to fit on, {MIN_DOCUMENTS} are needed"
        raise UsageError(what, where=str(documents.path), mend=mend)
