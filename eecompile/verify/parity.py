"""Parity at every boundary: the engines' rows against a reference's, and against their own in other passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eecompile.verify.compare import Comparator, Float
from eecompile.verify.criteria import criteria_of
from eecompile.verify.report import Check, Figure, at_least, at_most
from eecompile.verify.rows import EngineRows, ModelRows, Walker, boundaries
from eecompile.verify.tolerances import CLEAR_MARGIN, LEAST_CLEAR, PASSES, Tolerance

Pairs = Sequence[tuple[ModelRows, ModelRows]]


@dataclass(frozen=True)
class Walks:
    """The engines' rows of one sequence: as a prefill, and as a decode with one-row passes and pending rows."""

    ids: list[int]
    prefill: EngineRows
    decode: EngineRows
    source: list[int] | None = None


def walk_both(walker: Walker, ids: Sequence[int], source: list[int] | None = None) -> Walks:
    """Run `ids` (at most the context) both ways, given `source` where the model has one."""
    sequence = list(ids)
    prefill = walker.walk(sequence, walker.prefill_widths(len(sequence)), source=source)
    decode = walker.walk(sequence, walker.decode_widths(len(sequence)), exits=False, source=source)
    return Walks(sequence, prefill, decode, source)


def check_passes(walks: Sequence[Walks], compare: Comparator) -> tuple[Check, float]:
    """That a row does not depend on the pass it is computed in. Returns the check and the rounding noise of the logits:
    the largest difference of a logit between the two walks."""
    pairs = [(w.decode, w.prefill) for w in walks]
    stacked = _stacked(pairs)
    worst, passed = 0.0, True
    for actual, expected in stacked.values():
        figure, holds = compare(actual, expected, PASSES)["largest"]
        worst, passed = float(np.maximum(worst, figure)), passed and holds
    actual, expected = stacked["logits"]
    noise = float(np.abs(actual - expected).max())
    rows = len(stacked["finished"][0])
    figures: dict[str, Figure] = {"rows": rows, "largest": worst, "logit_noise": noise}
    note = f"every boundary, in prefill passes and in decode passes of other widths; compared by {compare.name}"
    return Check("passes", passed, figures, {"largest": at_most(PASSES["largest"])}, note), noise


def check_parity(label: str, reference: str, walks: Sequence[Walks], expected: Sequence[ModelRows],
                 compare: Comparator, tolerance: Tolerance) -> list[Check]:  # fmt: skip
    """One check a boundary: both walks of every sequence against the rows of `reference`."""
    pairs = [(rows, truth) for w, truth in zip(walks, expected, strict=True) for rows in (w.prefill, w.decode)]
    return [
        check_rows(f"{label} {name}", reference, actual, wanted, compare, tolerance, logits=name == "logits")
        for name, (actual, wanted) in _stacked(pairs).items()
    ]


def check_rows(name: str, reference: str, actual: Float, expected: Float, compare: Comparator, tolerance: Tolerance, *,
           logits: bool) -> Check:  # fmt: skip
    measured = compare(actual, expected, tolerance.bounds)
    figures: dict[str, Figure] = {"rows": len(actual), **{s: figure for s, (figure, _) in measured.items()}}
    bounds = {str(s): at_most(bound) for s, bound in tolerance.bounds.items()}
    passed = all(holds for _, holds in measured.values())
    if logits:
        agreed = actual.argmax(axis=1) == expected.argmax(axis=1)
        clear = criteria_of(expected)["margin"] > CLEAR_MARGIN
        figures |= {"top1": float(agreed.mean()), "clear_rows": int(clear.sum())}
        if clear.sum() >= LEAST_CLEAR:
            figures["clear_top1"] = float(agreed[clear].mean())
            bounds["clear_top1"] = at_least(tolerance.clear_top1)
            passed = passed and figures["clear_top1"] >= tolerance.clear_top1
    spoiled = "" if np.isfinite(actual).all() else "; the engines' rows are not finite"
    return Check(name, passed, figures, bounds, f"against {reference}{spoiled}")


def _stacked(pairs: Pairs) -> Mapping[str, tuple[Float, Float]]:
    """Rows of all pairs by boundary, as (actual, expected); of the last rows where the expected are fewer."""
    named = [(dict(boundaries(actual)), dict(boundaries(expected))) for actual, expected in pairs]
    stacked = {}
    for name in named[0][1]:
        actual = np.concatenate([a[name][-len(e[name]) :] for a, e in named])
        stacked[name] = (actual, np.concatenate([e[name] for _, e in named]))
    return stacked
