"""What a token costs on a measured profile, for any choice of open exits: the runtime's loop replayed over letters.

A calibration keeps what every exit said of every token of some documents (schema.CalibrationResult.traces). Together
with the profile's seconds a pass that is enough to tell, without running the model, what any subset of the exits would
have cost in any mode. The replay is that of runtime/decode.py over runtime/staircase.py, pass by pass; its one
approximation is that the letters were taken on the right text: after a wrong token they are those of a right one.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest, Profile
from eecompile.errors import UsageError
from eecompile.runtime.heads import head_graph
from eecompile.runtime.rules import listeners

Mode: TypeAlias = Literal["full", "confident", "exact"]
_HEAD = head_graph(c.FULL_HEAD)
Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class PassCosts:
    """Seconds of one pass. `curves` has for each graph and number of rows the lengths measured and their seconds."""

    curves: Mapping[str, Mapping[int, Curve]]

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
    replay = _REPLAYS[kv](manifest, opened, patience or [None] * len(manifest.exits), exact=mode == "exact", cap=cap)
    for letters in traces:
        replay.document(letters)
    tokens = sum(replay.walks.values())
    if not tokens:
        raise ValueError("the traces hold no token")
    passes = replay.passes()
    layers = {f"segment_{i}": segment.layers for i, segment in enumerate(manifest.graphs.segments)}
    depths = np.cumsum([layers[name] for name in replay.segments])
    seconds = sum(costs.seconds(graph, rows, length) * n for (graph, rows), n in passes.items())
    ideal = sum(replay.walk_seconds(walk, costs, length) * n for walk, n in replay.walks.items())
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


class Walk(NamedTuple):
    """A token's way down: the step after which it was emitted, and the exits and heads that were asked until then, the
    heads in order of their graphs' names."""

    step: int
    asked: int
    heads: tuple[str, ...]


def _walk(step: int, asked: int, heads: Sequence[str]) -> Walk:
    return Walk(step, asked, tuple(sorted(heads)))


class _Replay:
    """The decoder's loop over letters. `walks` counts the emitted tokens by their way down."""

    def __init__(
        self, manifest: Manifest, open_exits: set[int], patience: Sequence[float | None], *, exact: bool, cap: int
    ) -> None:
        self.segments = [f"segment_{step.segment}" for step in manifest.schedule]
        self.walks: Counter[Walk] = Counter()
        self.drafted = self.rejected = 0
        self._exits = len(manifest.exits)
        asked, self._votes = listeners(patience, manifest.exits, sorted(open_exits))
        self._open, asked = open_exits, open_exits | asked | self._votes
        self._asked = [step.exit if step.exit in asked else None for step in manifest.schedule]
        self._heads_of = [head_graph(e.head) for e in manifest.exits]
        self._exact, self._cap, self._last = exact, cap, len(self.segments) - 1
        self._embeds = 0
        self._runs = [[0] * (cap + 2) for _ in self.segments]  # by step, by rows
        self._asks = [0] * self._exits
        self._heads = [0] * (cap + 2)  # the model's head at full depth, by rows
        self._asked_heads: Counter[str] = Counter()  # heads of exits, one row each
        self._waiting = [0] * (len(self.segments) + 1)
        self._pending = self._position = 0
        self._drafts: list[tuple[bool, Walk]] = []  # whether it is right, and its way down

    def document(self, letters: str) -> None:
        """Emit as many tokens as the document's letters are about, and forget what is pending then."""
        tokens = len(letters) // self._exits if self._exits else 0
        self._waiting = [0] * len(self._waiting)
        self._pending = self._position = 0
        while self._position < tokens or self._drafts:
            if self._position < tokens:
                self._step(letters[self._position * self._exits :][: self._exits])
            else:
                self._flush()

    def passes(self) -> dict[tuple[str, int], int]:
        """How many passes ran, by graph and rows."""
        counted: Counter[tuple[str, int]] = Counter({("embed", 1): self._embeds})
        for name, by_rows in zip(self.segments, self._runs, strict=True):
            counted.update({(name, rows): n for rows, n in enumerate(by_rows)})
        counted.update({(f"exit_{i}", 1): n for i, n in enumerate(self._asks)})
        counted.update({("head", rows): n for rows, n in enumerate(self._heads)})
        counted.update({(graph, 1): n for graph, n in self._asked_heads.items()})
        return {key: n for key, n in counted.items() if n}

    def walk_seconds(self, walk: Walk, costs: PassCosts, length: int) -> float:
        """Seconds of the one-row passes of this way down."""
        exits = [exit_ for exit_ in self._asked if exit_ is not None][: walk.asked]
        graphs = ["embed", *self.segments[: walk.step + 1], *(f"exit_{i}" for i in exits), *walk.heads]
        return sum(costs.seconds(graph, 1, length) for graph in graphs)

    def _step(self, letters: str) -> None:
        """Decoder.step: the token at this position, of which the exits said `letters`, walks down."""
        self._embeds += 1
        self._waiting[0] += 1
        self._pending += 1
        self._position += 1
        asked, heads = 0, list[str]()
        for k, exit_ in enumerate(self._asked):
            self._run(k)
            if exit_ is None or self._pending > self._cap:
                continue
            asked += 1
            self._asks[exit_] += 1
            passes = exit_ in self._open and letters[exit_] != "."
            if not passes and exit_ not in self._votes:
                continue
            heads.append(self._heads_of[exit_])
            self._asked_heads[self._heads_of[exit_]] += 1
            if passes and letters[exit_] != "h":
                return self._emit(letters[exit_] == "a", _walk(k, asked, heads))
        return self._finish(_walk(self._last, asked, [*heads, _HEAD]))

    def _run(self, k: int) -> None:
        rows = self._waiting[k]
        self._runs[k][rows] += 1
        self._waiting[k] = 0
        self._waiting[k + 1] += rows

    def _emit(self, right: bool, walk: Walk) -> None:
        if self._exact:
            self.drafted += 1
            self._drafts.append((right, walk))
        else:
            self.walks[walk] += 1

    def _flush(self) -> None:
        """Decoder.flush: what is pending runs to full depth."""
        for k in range(next(k for k, rows in enumerate(self._waiting) if rows), len(self.segments)):
            self._run(k)
        self._finish(None)

    def _finish(self, walk: Walk | None) -> None:
        """Decoder._finish: the newest token, if there is one, is emitted from full depth; drafts are verified."""
        rows = self._waiting[-1]
        self._waiting[-1] = self._pending = 0
        self._heads[rows if self._exact else 1] += 1
        drafts, self._drafts = self._drafts, []
        kept = next((i for i, (right, _) in enumerate(drafts) if not right), len(drafts))
        self.rejected += len(drafts) - kept
        self.walks.update(way for _, way in drafts[:kept])
        if kept < len(drafts):  # the full model's token stands in its place, and what followed it is rolled back
            wrong = drafts[kept][1]
            self.walks[_walk(self._last, wrong.asked, [*wrong.heads, _HEAD])] += 1
            self._position += kept + 1 - rows
        elif walk is not None:
            self.walks[walk] += 1


class _SelectedReplay(_Replay):
    """The same where what has left goes nowhere: every segment's pass has one row. (Passes are priced at the whole
    length, though deeper caches are shorter.)"""

    def _step(self, letters: str) -> None:
        self._waiting = [0] * len(self._waiting)
        self._pending = 0  # any number may leave in a row
        super()._step(letters)


class _PropagateReplay(_SelectedReplay):
    """The same where what has left waits for K/V-only passes."""

    def __init__(
        self, manifest: Manifest, open_exits: set[int], patience: Sequence[float | None], *, exact: bool, cap: int
    ) -> None:
        super().__init__(manifest, open_exits, patience, exact=exact, cap=cap)
        self._fills: Counter[tuple[str, int]] = Counter()
        self._left = [0] * (len(self.segments) + 1)

    def document(self, letters: str) -> None:
        self._left = [0] * len(self._left)
        super().document(letters)

    def passes(self) -> dict[tuple[str, int], int]:
        return {**super().passes(), **self._fills}

    def _step(self, letters: str) -> None:
        if sum(self._left) >= self._cap:
            for k in range(len(self.segments)):
                self._fill(k)
        super()._step(letters)

    def _run(self, k: int) -> None:
        self._fill(k)
        super()._run(k)

    def _emit(self, right: bool, walk: Walk) -> None:
        self._left[walk.step + 1] += 1
        super()._emit(right, walk)

    def _fill(self, k: int) -> None:
        rows = self._left[k]
        if rows:
            self._fills[self.segments[k].replace("segment", "kv"), rows] += 1
            self._left[k] = 0
            self._left[k + 1] += rows if k < self._last else 0


_REPLAYS: Mapping[str, type[_Replay]] = {
    "catch_up": _Replay, "propagate": _PropagateReplay, "selected": _SelectedReplay,
}  # fmt: skip


def _curve(seconds: Mapping[int, float]) -> Curve:
    lengths = sorted(seconds)
    return np.array(lengths, np.float64), np.array([seconds[n] for n in lengths], np.float64)
