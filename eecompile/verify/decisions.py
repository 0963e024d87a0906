"""Exit decisions: the decision node's arithmetic, and the decisions that differ from a reference's.

A decision differs only where a threshold lies between the engine's value and the reference's. So the distance of the
reference's value from the threshold says how large an error it took.
"""

from collections.abc import Sequence

import numpy as np

from eecompile import contract as c
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.verify.criteria import Double, Values, criteria_of, fires
from eecompile.verify.parity import Walks
from eecompile.verify.report import Check, at_most
from eecompile.verify.rows import ExitRows, Float, Walker
from eecompile.verify.tolerances import NODE, Band

JUDGED = ("learned", *c.HEAD_CRITERIA)  # `fixed` and `never` decide nothing from the rows


def check_node(walker: Walker, rows: Float) -> Check:
    """The head's token, max_prob, margin, entropy and flag for normalised rows [N, D] against float64 on its logits.

    The flag has to be strict: a row does not pass a threshold equal to its value, and passes the next bolder one.
    """
    said = walker.head(rows, logits=True)
    assert said.logits is not None
    exact = criteria_of(said.logits)
    values = {name: getattr(said, name).copy() for name in c.HEAD_CRITERIA}
    figures = {name: float(np.abs(values[name] - exact[name]).max()) for name in c.HEAD_CRITERIA}
    wrong_tokens = int((said.token != said.logits.argmax(axis=1)).sum())
    wrong_flags = sum(_wrong_flags(walker, rows, i, values[name]) for i, name in enumerate(c.HEAD_CRITERIA))
    passed = all(figures[name] <= NODE.of(name) for name in c.HEAD_CRITERIA) and not wrong_tokens and not wrong_flags
    tolerance = {name: at_most(NODE.of(name)) for name in c.HEAD_CRITERIA}
    return Check(
        "decision_node", passed,
        {"rows": len(rows), **figures, "wrong_tokens": wrong_tokens, "wrong_flags": wrong_flags},
        {**tolerance, "wrong_tokens": at_most(0), "wrong_flags": at_most(0)},
        "the head's decision against float64 on its own logits",
    )  # fmt: skip


def check_flips(
    label: str, info: ExitInfo, policy: ExitPolicy, actual: Values, expected: Values, band: Band | None
) -> Check:
    """Decisions of one exit's gates at the policy's thresholds and at the quartiles of the expected values.

    "<criterion>_off" is how far from the threshold the expected value of a row was that the engine decided otherwise.
    band None: counted, not judged.
    """
    flips, decisions, furthest = 0, 0, dict.fromkeys(_judged(info), 0.0)
    for criterion in furthest:
        for threshold in _thresholds(policy, criterion, expected[criterion]):
            decided, should = (fires(criterion, values[criterion], threshold) for values in (actual, expected))
            flipped = decided != should
            distance = np.abs(expected[criterion][flipped] - threshold).max(initial=0.0)
            furthest[criterion] = float(np.maximum(furthest[criterion], distance))
            flips, decisions = flips + int(flipped.sum()), decisions + len(flipped)
    finite = all(np.isfinite(actual[criterion]).all() for criterion in furthest)
    figures = {"decisions": decisions, "flips": flips, **{f"{name}_off": off for name, off in furthest.items()}}
    tolerance = {f"{name}_off": at_most(band.of(name)) for name in furthest} if band else {}
    within = band is None or all(off <= band.of(name) for name, off in furthest.items())
    note = "" if band else "counted, not judged: quantisation moves the values themselves"
    return Check(f"{label} decisions exit_{info.layer}", within and finite, figures, tolerance, note)


def engine_values(rows: Sequence[ExitRows]) -> Values:
    """What an exit said of every token, by criterion."""
    names = {"learned": "confidence", **{name: name for name in c.HEAD_CRITERIA}}
    return {
        criterion: np.concatenate([getattr(r, name) for r in rows]).astype(np.float64)
        for criterion, name in names.items()
    }


def node_rows(walks: Sequence[Walks], most: int) -> Float:
    """Normalised rows to ask the head about: the last of each exit and of the full model, [N, D]."""
    kinds = [[w.prefill.exits[i].hidden for w in walks] for i in range(len(walks[0].prefill.exits))]
    kinds.append([w.prefill.finished for w in walks])
    share = max(1, most // len(kinds))
    return np.concatenate([np.concatenate(rows)[-share:] for rows in kinds])[:most]


def _wrong_flags(walker: Walker, rows: Float, column: int, own: Float) -> int:
    bolder = np.float32(np.inf) if c.HEAD_CRITERIA[column] == "entropy" else np.float32(-np.inf)
    wrong = 0
    for bound, passes in ((own, False), (np.nextafter(own, bolder), True)):
        bounds = np.tile(np.array(c.NO_BOUND, np.float32), (len(rows), 1))
        bounds[:, column] = bound
        wrong += int((walker.head(rows, bounds).exit_flag != passes).sum())
    return wrong


def _judged(info: ExitInfo) -> list[str]:
    return [gate for gate in info.gates if gate in JUDGED]


def _thresholds(policy: ExitPolicy, criterion: str, values: Double) -> list[float]:
    """The policy's own thresholds of a criterion and the quartiles of `values`, as float32 holds them."""
    own = [dict(t)[criterion] for t in (policy.confident, policy.draft) if t and criterion in t]
    return [float(np.float32(t)) for t in (*own, *np.quantile(values, (0.25, 0.5, 0.75)))]
