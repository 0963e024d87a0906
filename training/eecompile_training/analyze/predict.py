"""How much faster a model with one exit would decode, by replaying what its probe said through the runtime's loop.

Exit and threshold are chosen on every other passage and reported on the rest. Where 90, 95 or 99% of tokens have to be
the full model's the exit's answer stands (confident mode); at 100% it is a draft that the full model checks (exact
mode). Both catch skipped layers up, and both pay for the head each time the exit is asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from eecompile import contract as c
from eecompile.bench.cost import Mode, simulate
from eecompile_training.analyze.costs import LENGTH, Prices, one_exit
from eecompile_training.analyze.probes import Probe
from eecompile_training.analyze.table import Bool, Float, Said, Table

LEVELS: Final = (0.90, 0.95, 0.99, 1.0)
PAYS: Final = 1.05  # a speed-up below this is not worth an exit
_TOKENS: Final = 4096  # of each half that are replayed
_DRAFTS: Final = (0.3, 0.5, 0.7, 0.8, 0.9, 0.97)


@dataclass(frozen=True)
class Predicted:
    """The best exit for a level. speedup, agreement and exit_rate are of the passages that it was not chosen on; layer
    and threshold are None where no exit is better than none."""

    level: float
    mode: Mode
    speedup: float
    agreement: float
    exit_rate: float
    layer: int | None = None
    kind: str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class _Half:
    """Some passages' tokens: agrees and max_prob of one probe [N], and where the passages begin."""

    agrees: Bool
    max_prob: Float
    starts: Sequence[int]

    @classmethod
    def of(cls, table: Table, said: Said, odd: bool) -> "_Half":
        chosen = np.flatnonzero(table.document % 2 == odd)[:_TOKENS]
        documents = table.document[chosen]
        starts = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(documents)]
        return cls(said.agrees[chosen], said.max_prob[chosen], starts)

    def letters(self, threshold: float | None) -> list[str]:
        """CalibrationResult's letters of each passage; None: a gate that knows the answer, and asks no head if it is
        wrong."""
        fires = self.agrees if threshold is None else self.max_prob > threshold
        said = np.where(fires, np.where(self.agrees, "a", "x"), "." if threshold is None else "h")
        return ["".join(said[a:b]) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    def boldest(self, wrong: float) -> float:
        """The lowest threshold at which at most a share `wrong` of the tokens leave with another answer."""
        order = np.argsort(-self.max_prob, kind="stable")
        within = np.cumsum(~self.agrees[order]) <= wrong * len(order)
        most = int(within.sum())  # it rises once and for all
        return float(self.max_prob[order[most]]) if most < len(order) else 0.0


def predict(table: Table, probes: Sequence[Probe], depth: int, prices: Prices) -> list[Predicted]:
    """The best of the probes at each level of LEVELS."""
    halves = [(_Half.of(table, said, False), _Half.of(table, said, True)) for said in table.probes]
    found = []
    for level in LEVELS:
        mode: Mode = "confident" if level < 1 else "exact"
        best, speedup = None, 1.0
        for probe, (choose, report) in zip(probes, halves, strict=True):
            for threshold in [choose.boldest(1 - level)] if level < 1 else _DRAFTS:
                faster = _speedup(choose.letters(threshold), probe, depth, prices, mode)
                if faster > speedup:
                    best, speedup = (probe, report, threshold), faster
        found.append(_reported(level, mode, best, depth, prices))
    return found


def oracle_speedup(table: Table, probes: Sequence[Probe], depth: int, prices: Prices) -> tuple[float, int | None]:
    """(speed-up, layer) of the best exit with a gate that knows, before the head runs, whether the exit is right."""
    found: list[tuple[float, int | None]] = [(1.0, None)]
    for probe, said in zip(probes, table.probes, strict=True):
        letters = _Half.of(table, said, True).letters(None)
        found.append((_speedup(letters, probe, depth, prices, "confident"), probe.layer))
    return max(found, key=lambda pair: pair[0])


def verdict(predicted: Iterable[Predicted], oracle: float) -> str:
    """Whether early exit will pay, in words."""
    best = max((p for p in predicted if p.level >= 0.99), key=lambda p: p.speedup)
    if best.speedup >= PAYS:
        return f"early exit pays: {best.speedup:.2f}x at {best.level:.0%} agreement, after layer {best.layer}"
    if oracle >= PAYS:
        return (
            f"early exit will not pay as it is; one exit with a gate that always knew would get {oracle:.2f}x, "
            "and more takes better exits, a smaller head or trained layers"
        )
    return "early exit will not pay: not even a gate that always knew would gain anything on any exit measured"


def as_json(predicted: Sequence[Predicted]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(p) for p in predicted]


def _reported(
    level: float, mode: Mode, best: tuple[Probe, _Half, float] | None, depth: int, prices: Prices
) -> Predicted:
    if best is None:
        return Predicted(level, mode, 1.0, 1.0, 0.0)
    probe, half, threshold = best
    fires = half.max_prob > threshold
    agreement = 1.0 if mode == "exact" else float(1 - (fires & ~half.agrees).mean())
    speedup = _speedup(half.letters(threshold), probe, depth, prices, mode)
    return Predicted(level, mode, speedup, agreement, float(fires.mean()), probe.layer, probe.kind, threshold)


def _speedup(letters: Sequence[str], probe: Probe, depth: int, prices: Prices, mode: Mode) -> float:
    manifest, costs = one_exit(depth, probe.layer, probe.adapter, probe.head, prices)
    found = simulate(manifest, costs, letters, open_exits=[0], mode=mode, cap=c.PENDING_CAP, length=LENGTH)
    return prices.full(depth) / found.seconds_per_token
