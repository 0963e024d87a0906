"""What a token costs on a measured profile, for any choice of open exits: the runtime's loop replayed over letters.

A calibration keeps what every exit said of every token of some documents (schema.CalibrationResult.traces). Together
with the profile's seconds a pass that is enough to tell, without running the model, what any subset of the exits would
have cost in any mode (replay.py). An exit's module is in the pass of its graph: with an MLP block one row's, with a
layer that of all rows that wait for it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eecompile.bench.replay import REPLAYS
from eecompile.bundle.manifest import Manifest, Profile
from eecompile.errors import UsageError

Mode: TypeAlias = Literal["full", "confident", "exact"]
Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class PassCosts:
    """Seconds of one pass. `curves` has for each graph and number of rows the lengths measured and their seconds;
    `basis` says what that rests on."""

    curves: Mapping[str, Mapping[int, Curve]]
    basis: str = "this profile"

    @classmethod
    def from_profile(cls, profile: Profile) -> "PassCosts":
        """The costs that a profile measured."""
        measured: dict[str, dict[int, dict[int, float]]] = {}
        for p in profile.passes:
            measured.setdefault(p.graph, {}).setdefault(p.rows, {})[p.length] = p.seconds
        return cls({
            graph: {rows: _curve(seconds) for rows, seconds in sorted(by_rows.items())}
            for graph, by_rows in measured.items()
        })  # fmt: skip

    def seconds(self, graph: str, rows: int, length: int) -> float:
        """Seconds of one pass of `graph` (as named in PassTime) over `rows` rows, `length` tokens in the cache: linear
        between what was measured, the nearest beyond. Raises UsageError for a graph that was not measured."""
        if graph not in self.curves:
            raise UsageError(
                f"the profile has no time for {graph}", mend="measure this bundle: `eecompile profile BUNDLE`"
            )
        by_rows = self.curves[graph]
        at_length = [float(np.interp(length, lengths, seconds)) for lengths, seconds in by_rows.values()]
        return float(np.interp(rows, list(by_rows), at_length))


def full_depth_seconds(manifest: Manifest, costs: PassCosts, length: int) -> float:
    """Seconds of a token that runs every step, with no exit asked."""
    segments = [costs.seconds(f"segment_{step.segment}", 1, length) for step in manifest.schedule]
    return costs.seconds("embed", 1, length) + sum(segments) + costs.seconds("head", 1, length)


@dataclass(frozen=True)
class Simulated:
    """What a replay came to, the prompt's pass not included.

    ideal_seconds_per_token: of the one-row passes on each emitted token's own way down, the exits and heads asked on it
    included; no catching up, verifying or work that was rolled back. mean_depth: layers run before a token was emitted
    (exact mode: drafted). drafted, rejected: tokens. layer_rows_per_token: rows through layers, everything included.
    passes: number of passes by (graph, rows).
    """

    tokens: int
    seconds_per_token: float
    ideal_seconds_per_token: float
    mean_depth: float
    drafted: int
    rejected: int
    layer_rows_per_token: float
    passes: Mapping[tuple[str, int], int]


def simulate(
    manifest: Manifest, costs: PassCosts, traces: Iterable[str], *, open_exits: Collection[int], mode: Mode, cap: int,
    length: int, patience: Sequence[float | None] | None = None, kv: str = "catch_up",
) -> Simulated:  # fmt: skip
    """Replay the loop of `mode` over `traces` with the exits of these indices open, and price its passes.

    patience: the threshold of each exit that goes by it, since the exits before it are then asked for their votes.
    cap: tokens that may be pending. kv: the rule for skipped layers, which the traces were taken under. length: tokens
    in the cache, for the price of a pass. Raises ValueError where the traces hold no token, UsageError where the
    profile lacks a graph that ran.
    """
    opened = set[int]() if mode == "full" else set(open_exits)
    replay = REPLAYS[kv](manifest, opened, patience or [None] * len(manifest.exits), exact=mode == "exact", cap=cap)
    for letters in traces:
        replay.document(letters)
    tokens = sum(replay.walks.values())
    if not tokens:
        raise ValueError("the traces hold no token")
    passes = replay.passes()
    layers = {f"segment_{i}": segment.layers for i, segment in enumerate(manifest.graphs.segments)}
    depths = np.cumsum([layers[name] for name in replay.segments])
    seconds = sum(costs.seconds(graph, rows, length) * n for (graph, rows), n in passes.items())
    ideal = sum(costs.seconds(graph, 1, length) * n for w, n in replay.walks.items() for graph in replay.graphs(w))
    return Simulated(
        tokens=tokens,
        seconds_per_token=seconds / tokens,
        ideal_seconds_per_token=ideal / tokens,
        mean_depth=sum(int(depths[walk.step]) * n for walk, n in replay.walks.items()) / tokens,
        drafted=replay.drafted,
        rejected=replay.rejected,
        layer_rows_per_token=sum(layers.get(graph, 0) * rows * n for (graph, rows), n in passes.items()) / tokens,
        passes=passes,
    )


def _curve(seconds: Mapping[int, float]) -> Curve:
    lengths = sorted(seconds)
    return np.array(lengths, np.float64), np.array([seconds[n] for n in lengths], np.float64)
