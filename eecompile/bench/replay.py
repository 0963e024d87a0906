"""The decoder's loop replayed over trace letters: which passes it would make, without running the model.

The replay is that of runtime/decode.py over runtime/staircase.py and, for exits with a layer of their own,
runtime/modules.py, pass by pass; its one approximation is that the letters were taken on the right text: after a wrong
token they are those of a right one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.heads import head_graph
from eecompile.runtime.rules import listeners

_HEAD = head_graph(c.FULL_HEAD)


class Walk(NamedTuple):
    """A token's way down: the step after which it was emitted, and the exits and heads that were asked until then, the
    heads in order of their graphs' names."""

    step: int
    asked: int
    heads: tuple[str, ...]


def _walk(step: int, asked: int, heads: Sequence[str]) -> Walk:
    return Walk(step, asked, tuple(sorted(heads)))


@dataclass
class _LayerRows:
    """The rows that an exit with a layer has seen, as LayerAsker has them: `filled` in its cache, `waiting` behind them
    (no more than the cap and two). `passes` by rows."""

    filled: int = 0
    waiting: int = 0
    passes: Counter[int] = field(default_factory=Counter)

    def ask(self) -> None:
        self.passes[self.waiting] += 1
        self.filled, self.waiting = self.filled + self.waiting, 0

    def rewind(self, length: int) -> None:
        self.waiting = max(0, min(self.waiting, length - self.filled))
        self.filled = min(self.filled, length)


class Replay:
    """The decoder's loop over letters. `walks` counts the emitted tokens by their way down. The rows that a prompt
    leaves for an exit's layer are the prompt's: a document begins without any."""

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
        self._layers = {i: _LayerRows() for i in sorted(asked) if manifest.exits[i].adapter == "layer"}
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
        self._rewind_layers(0)
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
        for i, layer in self._layers.items():
            counted.update({(f"exit_{i}", rows): n for rows, n in layer.passes.items()})
        counted.update({("head", rows): n for rows, n in enumerate(self._heads)})
        counted.update({(graph, 1): n for graph, n in self._asked_heads.items()})
        return {key: n for key, n in counted.items() if n}

    def graphs(self, walk: Walk) -> list[str]:
        """The graphs that run one row each on this way down."""
        exits = [exit_ for exit_ in self._asked if exit_ is not None][: walk.asked]
        return ["embed", *self.segments[: walk.step + 1], *(f"exit_{i}" for i in exits), *walk.heads]

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
            self._ask(exit_)
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
        exit_ = self._asked[k]
        if exit_ in self._layers:
            self._layers[exit_].waiting += rows

    def _ask(self, exit_: int) -> None:
        if exit_ in self._layers:
            self._layers[exit_].ask()
        else:
            self._asks[exit_] += 1

    def _rewind_layers(self, length: int) -> None:
        for layer in self._layers.values():
            layer.rewind(length)

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
            self._rewind_layers(self._position)
        elif walk is not None:
            self.walks[walk] += 1


class SelectedReplay(Replay):
    """The same where what has left goes nowhere: every segment's pass has one row. (Passes are priced at the whole
    length, though deeper caches are shorter.)"""

    def _step(self, letters: str) -> None:
        self._waiting = [0] * len(self._waiting)
        self._pending = 0  # any number may leave in a row
        super()._step(letters)


class PropagateReplay(SelectedReplay):
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


REPLAYS: Mapping[str, type[Replay]] = {
    "catch_up": Replay, "propagate": PropagateReplay, "selected": SelectedReplay,
}  # fmt: skip
