"""From safe to bold: thresholds of all exits along one scalar, from the path documents alone.

The scalar, a point's `level`, is the disagreement an exit may have among the tokens it fires on. At a level every exit
takes the boldest thresholds that keep to it. Where a learned gate stands before the head there are many such pairs of
thresholds; taken is the one that saves most, a head that is run for nothing counted against it (with a vocabulary of
49,152 a head costs 8 of SmolLM2's 30 layers, so that opening the cheap gate wide makes an exit slower than none).
Nothing here needs to be right for the guarantee to hold: it comes from the test documents (ltt.py).

Thresholds are values that were observed: float32, as the runtime's own, whose strict comparison leaves out the token
that they were observed at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.bundle.ranges import BELOW, MOST_DELTA, criterion_range
from eecompile.calibrate.tables import ExitTable, Float, TokenTable
from eecompile.schema import Criterion, Thresholds

Ints = NDArray[np.int64]
LEVELS: Final = tuple(float(level) for level in np.geomspace(0.001, 0.5, 100))
_CHEAP_QUANTILES: Final = tuple(float(q) for q in 1 - np.geomspace(0.005, 0.95, 48))


@dataclass(frozen=True)
class Price:
    """Layers of the model, what an exit's head costs in layers, and the vocabulary."""

    layers: int
    head: float
    vocab: int

    @classmethod
    def of(cls, manifest: Manifest, head: str = c.FULL_HEAD) -> "Price":
        """With the head of this name. By bytes read, which is what a pass of few rows costs: a layer that runs several
        times is read as often."""
        model = manifest.model
        table, stored = model.vocab * model.hidden, sum(segment.layers for segment in manifest.graphs.segments)
        layer = max(1, model.parameters - table) / stored
        small = {h.name: h.weights(model.hidden, model.vocab) for h in manifest.heads}
        return cls(model.layers, small.get(head, table) / layer, model.vocab)


def prices(manifest: Manifest) -> list[Price]:
    """What the head of each exit costs."""
    return [Price.of(manifest, e.head) for e in manifest.exits]


@dataclass(frozen=True)
class _Ranked:
    """Tokens in the order of one or more gates. `ranks` [T]: tokens that are strictly less bold (least over the gates).

    A token's rank is above k exactly where every gate is strictly bolder than `thresholds(k)`, k from -1 (everything
    fires) to T - 1.
    """

    ranks: Ints
    ordered: dict[Criterion, Float]
    vocab: int

    @classmethod
    def of(cls, exit_: ExitTable, gates: Sequence[Criterion], vocab: int) -> "_Ranked":
        bold = {gate: _boldness(gate, exit_.values[gate]) for gate in gates}
        ordered = {gate: np.sort(values) for gate, values in bold.items()}
        ranks = [np.searchsorted(ordered[gate], values) for gate, values in bold.items()]
        lowest = np.min(ranks, axis=0) if ranks else np.zeros(len(exit_.agrees), np.int64)
        return cls(lowest, ordered, vocab)

    def thresholds(self, k: int) -> Thresholds:
        return {gate: self._threshold(gate, values, k) for gate, values in self.ordered.items()}

    def _threshold(self, gate: Criterion, ordered: Float, k: int) -> float:
        if gate == "delta":
            return MOST_DELTA if k < 0 else -float(ordered[k])
        if gate == "entropy":
            most = float(np.nextafter(np.float32(math.log(self.vocab)), np.float32(0)))
            return most if k < 0 else min(max(0.0, -float(ordered[k])), most)
        least, most = criterion_range(gate, self.vocab)
        return min(most, max(least, float(ordered[k]))) if k >= 0 else least


def threshold_path(
    table: TokenTable, costs: Sequence[Price], levels: Sequence[float] = LEVELS
) -> list[tuple[float, list[Thresholds | None]]]:
    """(level, thresholds of each exit) from safe to bold; levels that change nothing are left out. costs: by exit."""
    along = [thresholds_along(exit_, levels, price) for exit_, price in zip(table.exits, costs, strict=True)]
    path: list[tuple[float, list[Thresholds | None]]] = []
    for number, level in enumerate(levels):
        chosen = [thresholds[number] for thresholds in along]
        if any(t is not None for t in chosen) and (not path or chosen != path[-1][1]):
            path.append((level, chosen))
    return path


def thresholds_along(exit_: ExitTable, levels: Sequence[float], price: Price) -> list[Thresholds | None]:
    """For each of the rising `levels` the thresholds that save most among those that keep to it (None: none do).

    The cheap gates' never become safer on the way, so that the path does not go back and forth.
    """
    if "never" in exit_.gates or not exit_.usable.any():
        return [None] * len(levels)
    head = [gate for gate in exit_.gates if gate in (*c.HEAD_CRITERIA, "patience", "delta")]
    cheap = [gate for gate in exit_.gates if gate in c.CHEAP_CRITERIA]
    fine = _Ranked.of(exit_, head or cheap, price.vocab)
    coarse = _Ranked.of(exit_, cheap if head else [], price.vocab)
    candidates = [(k, _Counts.of(exit_, fine, exit_.usable & (coarse.ranks > k))) for k in _candidates(coarse)]
    found: list[Thresholds | None] = []
    for level in levels:
        offers = [
            (counts.saved(bound, exit_.layer, price), k, bound)
            for k, counts in candidates
            if (bound := counts.boldest(level)) is not None
        ]
        if not offers:
            found.append(None)
            continue
        _, k, bound = max(offers)
        candidates = [(other, counts) for other, counts in candidates if other <= k]
        both = {**coarse.thresholds(k), **fine.thresholds(bound)}
        found.append({gate: both.get(gate, 0.0) for gate in exit_.gates})
    return found


@dataclass(frozen=True)
class _Counts:
    """Of the tokens that pass the cheap gates: how many have a rank of k or more, [k], and how many of them err."""

    above: Ints
    errors: NDArray[np.float64]

    @classmethod
    def of(cls, exit_: ExitTable, fine: _Ranked, passing: NDArray[np.bool_]) -> "_Counts":
        ranks = fine.ranks[passing]
        above = np.bincount(ranks)[::-1].cumsum()[::-1]
        return cls(above, np.bincount(ranks, ~exit_.agrees[passing])[::-1].cumsum()[::-1])

    def boldest(self, level: float) -> int | None:
        """The lowest k such that at most `level` of the tokens with a rank above k are wrong."""
        good = np.flatnonzero(self.errors <= level * self.above)
        return int(good[0]) - 1 if len(good) else None

    def saved(self, bound: int, layer: int, price: Price) -> float:
        """Layers saved by the tokens with a rank above `bound`, less what the heads that are run for nothing cost."""
        fired = int(self.above[bound + 1])
        return (price.layers - layer) * fired - price.head * (int(self.above[0]) - fired)


def _candidates(coarse: _Ranked) -> list[int]:
    if not coarse.ordered:
        return [-1]
    return [-1, *sorted({int(q * len(coarse.ranks)) for q in _CHEAP_QUANTILES})]


def _boldness(gate: Criterion, values: Float) -> Float:
    """Higher is bolder, whatever the gate; what is not finite is least bold."""
    bold = -values if gate in BELOW else values
    return np.where(np.isfinite(bold), bold, np.float32(-math.log(c.MAX_VOCAB))).astype(np.float32)
