"""Two runs of one graph held against each other by their outputs alone: rows within a precision's tolerance, decisions
that differ named.

A decision differs only where its threshold lies between the values that the two runs give it. So these values' distance
bounds how far each is from the threshold, whatever that is: a flip is a near-tie where they are as close as the
precision lets them be, and a fault where they are equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.verify.compare import Float, Statistic, measure_with_numpy, scaled
from eecompile.verify.criteria import Double, fires
from eecompile.verify.report import at_most
from eecompile.verify.tolerances import ARITHMETIC, BANDS, CONFIDENCE, DEVICE, DEVICE_SCORES, EXITS, PARITY, Band

Outputs = Mapping[str, NDArray[Any]]
GATES: Mapping[str, str] = {c.CONFIDENCE: "learned", c.SATURATION: "saturation", c.PREDICTION: "predictor"}
VALUES = (*c.HEAD_CRITERIA, *GATES)  # one number a row
ROUNDING = {"float16": 2**-10, "int8": 1 / 127}  # of a row's size: what values in a narrow cache may round apart


@dataclass(frozen=True)
class Judged:
    """One output of both runs: `passed`, the figures in words, and a line for each decision that differs."""

    passed: bool
    said: str
    flips: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputRules:
    """bounds: of rows' errors (compare.py). band: how far values that decide may be apart. gates: thresholds of a cheap
    gate's output, by its name; its decisions at them are compared."""

    bounds: Mapping[Statistic, float]
    band: Band
    gates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def judge(self, first: Outputs, second: Outputs) -> dict[str, Judged]:
        """Every output that both runs have. second: the one to be held to, where it matters."""
        return {name: self._judge(name, first, second) for name in first if name in second}

    def _judge(self, name: str, first: Outputs, second: Outputs) -> Judged:
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if a.shape != b.shape:
            return Judged(False, f"shapes {list(a.shape)} and {list(b.shape)}")
        if name == c.EXIT_FLAG:
            return _told(a != b, list(_flag_flips(first, second, self.band)))
        if name == c.TOKEN:
            return _told(a != b, list(_token_flips(first, second, self.band)))
        if name in VALUES:
            return self._values(name, a.astype(np.float64), b.astype(np.float64))
        if a.dtype == np.int64 or a.dtype == np.bool_:
            return Judged(bool((a == b).all()), f"{int((a != b).sum())} of {a.size} differ")
        return self._rows(a, b)

    def _values(self, name: str, a: Double, b: Double) -> Judged:
        """Numbers that decide. Where both are NaN, neither lets a row stop."""
        apart = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
        most, worst = self.band.of(name), float(apart.max(initial=0.0))
        flips = [
            f"row {i} {'stops' if fires(GATES[name], a, t)[i] else 'goes on'}, not so in the second: "
            f"{name} {a[i]:.6g} and {b[i]:.6g}, threshold {t:.6g}"
            for t in self.gates.get(name, ())
            for i in np.flatnonzero(fires(GATES[name], a, t) != fires(GATES[name], b, t))
        ]
        decisions = f"; {len(flips)} decisions differ" if name in self.gates else ""
        return Judged(worst <= most, f"largest {worst:.3g} {at_most(most)}{decisions}", tuple(flips))

    def _rows(self, a: NDArray[Any], b: NDArray[Any]) -> Judged:
        bounds = {statistic: bound + ROUNDING.get(b.dtype.name, 0.0) for statistic, bound in self.bounds.items()}
        found = {statistic: _error(_flat(a), _flat(b), statistic, bound) for statistic, bound in bounds.items()}
        said = ", ".join(f"{s} {figure:.3g} {at_most(bounds[s])}" for s, (figure, _) in found.items())
        return Judged(all(holds for _, holds in found.values()), said)


def same_weights(precision: str, gates: Mapping[str, Sequence[float]] | None = None) -> OutputRules:
    """Rules for two engines on the same weights, stored in `precision`: only their kernels' arithmetic differs."""
    return OutputRules((PARITY if precision == "fp32" else ARITHMETIC)[precision].bounds, BANDS[precision], gates or {})


def float32_model(precision: str) -> OutputRules:
    """Rules for weights stored in `precision` against a model in float32."""
    return OutputRules(PARITY[precision].bounds, BANDS[precision])


def device_graph(precision: str, compute: str) -> OutputRules:
    """Rules for a graph that computes in `compute` against the bundle's own, on the same weights and inputs; what the
    bundle's own rounds in products of quantised weights comes on top."""
    if precision in c.ROUNDED:
        return OutputRules(ARITHMETIC[precision].bounds, BANDS[precision])
    if compute == "bfloat16":  # eight times as coarse as float16; not measured
        return OutputRules({"mean": 8 * DEVICE["float16"]["mean"]}, BANDS["int8"])
    return OutputRules(DEVICE[compute], Band(DEVICE_SCORES[compute], DEVICE_SCORES[compute]))


def exit_graph(gates: Mapping[str, Sequence[float]]) -> OutputRules:
    """Rules for the graph of an exit without a module, in float32 whatever the precision, against float64."""
    return OutputRules(EXITS, Band(CONFIDENCE, CONFIDENCE), gates)


def _flat(array: NDArray[Any]) -> Float:
    """Rows along the last dimension, [N, n]."""
    return array.astype(np.float32).reshape(-1, array.shape[-1] if array.ndim else 1)


def _error(a: Float, b: Float, statistic: Statistic, bound: float) -> tuple[float, bool]:
    """The error of rows [N, ..], and whether it is within the bound; none where there are no rows."""
    return (0.0, True) if not a.size else measure_with_numpy(*scaled(a, b, statistic), statistic, bound)


def _told(different: NDArray[np.bool_], flips: list[tuple[str, bool]]) -> Judged:
    near = sum(1 for _, is_near in flips if is_near)
    lines = tuple(f"{line} ({'near-tie' if is_near else 'no near-tie'})" for line, is_near in flips)
    return Judged(near == len(flips), f"{len(flips)} of {different.size} differ, {near} of them near-ties", lines)


def _flag_flips(first: Outputs, second: Outputs, band: Band) -> Iterator[tuple[str, bool]]:
    """Rows whose exit flags differ, and whether the values that decide are close enough to be called a near-tie, and
    not so equal that no threshold lies between them."""
    for i in np.flatnonzero(first[c.EXIT_FLAG] != second[c.EXIT_FLAG]):
        pairs = {n: (float(first[n][i]), float(second[n][i])) for n in c.HEAD_CRITERIA if n in first and n in second}
        gaps = {name: abs(a - b) for name, (a, b) in pairs.items()}
        near = bool(gaps) and all(gap <= band.of(name) for name, gap in gaps.items()) and any(gaps.values())
        values = ", ".join(f"{name} {a:.6g} and {b:.6g}" for name, (a, b) in pairs.items())
        does = "exits, and goes on" if first[c.EXIT_FLAG][i] else "goes on, and exits"
        yield f"row {i} {does} in the second: {values or 'no values that decide'}", near


def _token_flips(first: Outputs, second: Outputs, band: Band) -> Iterator[tuple[str, bool]]:
    """Rows whose tokens differ, and whether neither run prefers its own by much."""
    for i in np.flatnonzero(first[c.TOKEN] != second[c.TOKEN]):
        leads = [float(run[c.MARGIN][i]) for run in (first, second) if c.MARGIN in run]
        near = bool(leads) and all(lead <= band.probability for lead in leads)
        margins = " and ".join(f"{lead:.3g}" for lead in leads)
        yield f"row {i}: token {first[c.TOKEN][i]} and {second[c.TOKEN][i]}, margins {margins or 'unknown'}", near
