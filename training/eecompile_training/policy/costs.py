"""What a rollout costs on the target: every pass that its decisions lead to, catching up included.

A token that leaves early has not saved the segments after its exit: its row waits, and makes a later pass longer. So
tokens are priced one after another along the staircase (runtime/staircase.py), pass by pass, each by its graph, its
rows and the tokens in the cache then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from eecompile.bench.cost import PassCosts
from eecompile.bundle.manifest import Manifest, Profile
from eecompile.calibrate.points import Price as HeadPrice
from eecompile.runtime.heads import head_graph
from eecompile.runtime.plan import PASS_ROWS
from eecompile_training.policy.records import TokenWalk

Price = Callable[[str, int, int], float]  # of one pass: graph, rows, tokens in the cache
_HEAD = "head"


def price_from_profile(profile: Profile) -> Price:
    """Measured seconds of a pass. Raises UsageError, when asked, for a graph that was not measured."""
    return cache(PassCosts.from_profile(profile).seconds)


def price_from_bytes(manifest: Manifest) -> Price:
    """A pass's price in layers where nothing was measured: the bytes that it reads over those of a layer, and each row
    a share of them, as many rows as plan.PASS_ROWS costing as much as the weights."""
    model = manifest.model
    stored = sum(segment.layers for segment in manifest.graphs.segments)
    layer = max(1, model.parameters - model.vocab * model.hidden) / stored
    cached = 2 * model.kv_heads * model.head_dim / layer  # of one token, in one layer
    layers: dict[str, float] = {f"segment_{i}": segment.layers for i, segment in enumerate(manifest.graphs.segments)}
    heads = [_HEAD, *(head_graph(head.name) for head in manifest.heads)]
    names = ["full", *(head.name for head in manifest.heads)]
    weights = {graph: HeadPrice.of(manifest, name).head for graph, name in zip(heads, names, strict=True)}
    for i, info in enumerate(manifest.exits):
        adapter = {"norm": 0.0, "affine": model.hidden**2 / layer, "mlp": 2 / 3, "layer": 1.0}
        weights[f"exit_{i}"] = adapter.get(info.adapter, 0.0) + info.gate_units * model.hidden / layer
    for i, segment in enumerate(manifest.graphs.segments):  # keys and values are as much of a layer as they are wide
        weights[f"kv_{i}"] = segment.layers * 2 * model.kv_heads * model.head_dim * model.hidden / layer

    @cache
    def price(graph: str, rows: int, length: int) -> float:
        reads = layers.get(graph, weights.get(graph, 0.0))
        return reads * (PASS_ROWS + rows) / (PASS_ROWS + 1) + layers.get(graph, 0.0) * cached * length

    return price


@dataclass(frozen=True)
class TokenCost:
    """Of one token: everything that ran for it, and of that what had run when each exit on its way was answered."""

    total: float
    sunk: tuple[float, ...]


class Meter:
    """Prices one sequence, token by token.

    length: tokens in the cache so far, the prompt's, nothing of which is pending. cap: tokens that may wait. kv: the
    rule for skipped layers.
    """

    def __init__(self, manifest: Manifest, price: Price, *, length: int, cap: int, kv: str = "catch_up") -> None:
        self._price, self._length, self._cap, self._propagates = price, length, cap, kv == "propagate"
        self._segments = [f"segment_{step.segment}" for step in manifest.schedule]
        self._exits = [step.exit for step in manifest.schedule]
        self._heads = [head_graph(e.head) for e in manifest.exits]
        self._attends = [e.adapter == "layer" for e in manifest.exits]
        self._waiting = [0] * (len(self._segments) + 1)
        self._left = [0] * len(self._waiting)  # of those, rows that K/V-only passes will fill in (propagate)
        self._offered = [0] * len(self._heads)  # rows that an exit with a layer of its own has not run yet
        self._spent = 0.0

    def full(self, length: int) -> float:
        """A token that runs every step, no exit asked, with `length` tokens in the cache, itself included."""
        segments = sum(self._price(name, 1, length) for name in self._segments)
        return self._price("embed", 1, length) + segments + self._price(_HEAD, 1, length)

    def token(self, walk: TokenWalk) -> TokenCost:
        """The next token."""
        self._spent, self._length = 0.0, self._length + 1
        if self._propagates and sum(self._left) >= self._cap:
            for k in range(len(self._segments)):
                self._fill(k)
        self._pay("embed", 1)
        self._waiting[0] += 1
        asked, sunk = {a.exit: a for a in walk.asked}, list[float]()
        for k, exit_ in enumerate(self._exits):
            self._run(k)
            if exit_ is None or exit_ not in asked:
                continue
            self._ask(exit_)
            sunk.append(self._spent)
            if asked[exit_].head:
                self._pay(self._heads[exit_], 1)
            if walk.fired == exit_:
                self._leave(k + 1)
                return TokenCost(self._spent, tuple(sunk))
        self._waiting[-1] = 0
        self._pay(_HEAD, 1)
        return TokenCost(self._spent, tuple(sunk))

    def left(self) -> float:
        """What is pending adds to the passes of the next token that runs every step."""
        self._spent, rows, length = 0.0, 0, self._length + 1
        for k, name in enumerate(self._segments):
            rows += self._left[k] if self._propagates else self._waiting[k]
            if not rows:
                continue
            if self._propagates:
                self._spent += self._price(name.replace("segment", "kv"), rows, length)
            else:
                self._spent += max(0.0, self._price(name, rows + 1, length) - self._price(name, 1, length))
        return self._spent

    def _pay(self, graph: str, rows: int) -> None:
        self._spent += self._price(graph, rows, self._length)

    def _ask(self, exit_: int) -> None:
        rows = self._offered[exit_] if self._attends[exit_] else 1
        self._pay(f"exit_{exit_}", max(1, rows))
        self._offered[exit_] = 0

    def _run(self, k: int) -> None:
        if self._propagates:
            self._fill(k)
        rows, self._waiting[k] = self._waiting[k], 0
        self._pay(self._segments[k], rows)
        self._waiting[k + 1] += rows
        exit_ = self._exits[k]
        if exit_ is not None:
            self._offered[exit_] += rows

    def _leave(self, k: int) -> None:
        if self._propagates:
            self._left[k] += 1
            self._waiting[k] = 0

    def _fill(self, k: int) -> None:
        rows, self._left[k] = self._left[k], 0
        if rows:
            self._pay(self._segments[k].replace("segment", "kv"), rows)
            if k + 1 < len(self._segments):
                self._left[k + 1] += rows


def full_cost(meter: Meter, first: int, tokens: int) -> float:
    """C_full: `tokens` tokens that run every step, after `first` in the cache."""
    return sum(meter.full(first + t + 1) for t in range(tokens))


def rollout_cost(meter: Meter, walks: Sequence[TokenWalk], *, ended: bool) -> list[TokenCost]:
    """The cost of each token; where the text would go on, the last bears what it leaves pending."""
    costs = [meter.token(walk) for walk in walks]
    if costs and not ended:
        costs[-1] = TokenCost(costs[-1].total + meter.left(), costs[-1].sunk)
    return costs
