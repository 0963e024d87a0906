"""Tuned gates beside the best fixed threshold: agreement against cost on held-out prompts, as points, JSON and PNG."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.schema import Criterion
from eecompile_training.policy.forced import Point, Replay, Rule
from eecompile_training.policy.records import Float
from eecompile_training.policy.rollouts import World

Confidences = Sequence[Mapping[int, Float]]  # by text and exit
THRESHOLDS: Final = 12  # of the learned gates, at quantiles of what they say
BOUNDS: Final[tuple[tuple[Criterion, Sequence[float]], ...]] = (
    ("max_prob", (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)), ("margin", (0.1, 0.3, 0.6)),
)  # fmt: skip
ALONE: Final = (*np.linspace(0.2, 0.95, 31).round(3).tolist(), 0.97, 0.98, 0.99, 0.995)  # of max_prob, no other asked
LEVELS: Final = (0.90, 0.95, 0.98, 0.99)
_EVERY_SUBSET: Final = 4  # exits up to which every subset is tried


@dataclass(frozen=True)
class Tried:
    """A rule and what it came to."""

    rule: Rule
    point: Point

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self.point), "rule": asdict(self.rule)}


def sweep(manifest: Manifest, world: World, replay: Replay, confidences: Confidences, *, own: bool) -> list[Tried]:
    """One threshold for all open exits, of the learned gates and, where exits have such a gate, of their heads: every
    subset of the exits, every pair. own: the confidences are the bundle's own; then also max_prob alone, finely, which
    is what a threshold usually is."""
    said = np.concatenate([values for text in confidences for values in text.values()])
    usable = said[np.isfinite(said)]
    levels = np.unique(np.quantile(usable, np.linspace(0, 1, THRESHOLDS))).tolist() if len(usable) else []
    found = []
    for exits in _subsets(world.exits):
        for learned, others in itertools.product([0.0, 0.5, *levels], _others(manifest, world, exits)):
            rule = Rule(exits, learned, others)
            found.append(Tried(rule, replay.point(rule, None if own else confidences)))
        if own and any("max_prob" in manifest.exits[g].gates for g in exits):
            alone = [Rule(exits, 0.0, {"max_prob": bound}) for bound in ALONE]
            found += [Tried(rule, replay.point(rule)) for rule in alone]
    return found


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those that nothing beats in agreement and in cost, cheapest first."""
    kept = list[Tried]()
    for one in sorted(tried, key=lambda t: (t.point.cost, -t.point.agreement)):
        if not kept or one.point.agreement > kept[-1].point.agreement:
            kept.append(one)
    return kept


def cheapest(tried: Sequence[Tried], agreement: float) -> Tried | None:
    """The least cost at this agreement or more."""
    able = [one for one in tried if one.point.agreement >= agreement]
    return min(able, key=lambda one: one.point.cost, default=None)


def compared(fixed: Sequence[Tried], tuned: Sequence[Tried], levels: Sequence[float]) -> list[dict[str, Any]]:
    """At each agreement the least cost of both, and how much faster the tuned gates are."""
    rows = []
    for level in levels:
        pair = [cheapest(those, level) for those in (fixed, tuned)]
        if pair[0] is not None and pair[1] is not None:
            costs = [one.point.cost for one in pair if one is not None]
            rows.append({"agreement": level, "fixed": costs[0], "tuned": costs[1], "gain": costs[0] / costs[1]})
    return rows


def plot_curves(path: Path, fixed: Sequence[Tried], tuned: Sequence[Tried], ships: Point) -> None:
    """Both fronts and the point that ships, as PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, tried in (("best fixed threshold", fixed), ("tuned gates", tuned)):
        points = [one.point for one in front(tried)]
        axes.step([p.cost for p in points], [p.agreement for p in points], where="post", marker=".", label=name)
    axes.plot([ships.cost], [ships.agreement], "k*", markersize=12, label="tuned gates above one half")
    axes.set_xlabel("time over that of full depth")
    axes.set_ylabel("agreement with the full model")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _subsets(exits: Sequence[int]) -> list[tuple[int, ...]]:
    sizes = range(1, len(exits) + 1) if len(exits) <= _EVERY_SUBSET else (1, len(exits))
    return [subset for size in sizes for subset in itertools.combinations(exits, size)]


def _others(manifest: Manifest, world: World, exits: Sequence[int]) -> list[dict[Criterion, float]]:
    """This world's thresholds beside the learned ones, and bounds for one gate of the head that an exit has."""
    own: dict[Criterion, float] = dict(world.others)
    found = [own]
    for gate, bounds in BOUNDS:
        if gate in c.HEAD_CRITERIA and any(gate in manifest.exits[g].gates for g in exits):
            found += [{**own, gate: bound} for bound in bounds]
    return found
