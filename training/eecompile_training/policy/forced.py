"""What a rule would have done on texts of the full model's own, token by token: the table behind the curves.

With catch_up a cache row is the full model's whatever leaves, so that one pass over a text says what any rule over any
gates emits there and what that costs. With propagate that is an approximation, as everything that skips is; the points
that matter are then confirmed by the runtime itself (environment.judge_on).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.rules import HIGHEST, listeners
from eecompile.runtime.source import sequence
from eecompile.runtime.trace import ExitTrace, Tracer
from eecompile.schema import Criterion
from eecompile_training.policy.costs import Meter, Price, full_cost, rollout_cost
from eecompile_training.policy.prompts import Prompt
from eecompile_training.policy.records import Asked, Bools, Float, Ints, TokenWalk
from eecompile_training.policy.rollouts import World
from eecompile_training.policy.states import gate_inputs_of


@dataclass(frozen=True)
class Text:
    """T tokens that follow `first` tokens in the cache: the full model's [T], and what each exit says there. confidence
    [T] and state [T, D] of the trained exits, by exit: under the bundle's own gates, and for others."""

    first: int
    final: Ints
    exits: Sequence[ExitTrace]
    confidence: Mapping[int, Float]
    state: Mapping[int, Float]


@dataclass(frozen=True)
class Rule:
    """Which exits leave where: learned gates strictly above `learned`, and the others' thresholds."""

    exits: Sequence[int]
    learned: float
    others: Mapping[Criterion, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A rule on texts: share of tokens that are the full model's, C / C_full, layers run before a token was emitted,
    share that left early."""

    agreement: float
    cost: float
    depth: float
    exit_rate: float


def read_texts(bundle: Bundle, world: World, prompts: Sequence[Prompt]) -> list[Text]:
    """The full model's continuations of the prompts, `world.tokens` each or to their end, traced."""
    session, tracer = bundle.session(mode="full"), Tracer(bundle, boundaries=True)
    inputs, found = gate_inputs_of(bundle, world.exits), list[Text]()
    for prompt in prompts:
        ids = [token.id for token in session.generate(prompt.ids, max_new_tokens=world.tokens + 1)]
        count = len(ids) - 1
        if not count:
            continue
        walked, source = sequence(bundle.manifest, prompt.ids, ids[:-1])
        trace = tracer.trace(walked, source)
        boundaries, exits = trace.boundaries or [], [_last(said, count) for said in trace.exits]
        found.append(
            Text(
                len(walked) - count, trace.final.token[-count:], exits,
                {g: exits[g].confidence for g in world.exits},
                {g: read(boundaries[g][-count:]) for g, read in inputs.items()},
            )
        )  # fmt: skip
    return found


class Replay:
    """Rules over texts. gates: logits of other gates, by exit, than the bundle's own."""

    def __init__(self, bundle: Bundle, world: World, price: Price, texts: Sequence[Text]) -> None:
        self._manifest, self._world, self._price, self._texts = bundle.manifest, world, price, texts
        self._layers = [info.layer for info in bundle.manifest.exits]
        self._full = [full_cost(self._meter(text), text.first, len(text.final)) for text in texts]

    def point(self, rule: Rule, confidence: Sequence[Mapping[int, Float]] | None = None) -> Point:
        """What the rule comes to. confidence: of other gates than the bundle's, by text and exit."""
        right, tokens, depth, early, shares = 0, 0, 0, 0, list[float]()
        for i, text in enumerate(self._texts):
            walks = self._walks(text, rule, text.confidence if confidence is None else confidence[i])
            costs = rollout_cost(self._meter(text), walks, ended=False)
            shares.append(sum(cost.total for cost in costs) / self._full[i])
            for t, walk in enumerate(walks):
                said = text.final if walk.fired is None else text.exits[walk.fired].token
                right += int(said[t] == text.final[t])
                depth += self._manifest.model.layers if walk.fired is None else self._layers[walk.fired]
                early += walk.fired is not None
            tokens += len(walks)
        return Point(right / tokens, float(np.mean(shares)), depth / tokens, early / tokens)

    def _meter(self, text: Text) -> Meter:
        return Meter(self._manifest, self._price, length=text.first, cap=self._world.cap, kv=self._world.kv)

    def _walks(self, text: Text, rule: Rule, confidence: Mapping[int, Float]) -> list[TokenWalk]:
        """As Decoder.step in confident mode: at the cap a token runs to full depth, no exit asked."""
        passed = {g: self._passed(text.exits[g], g, rule, confidence[g]) for g in rule.exits}
        fires = {g: passed[g] & self._fires(text.exits[g], g, rule) for g in rule.exits}
        patience = [self._threshold("patience", g, rule) for g in range(len(self._layers))]
        heard, votes = listeners(patience, self._manifest.exits, list(rule.exits))
        asked, walks, early = sorted({*rule.exits, *heard, *votes}), list[TokenWalk](), 0
        for t in range(len(text.final)):
            walk = TokenWalk((), None)
            if early < self._world.cap or self._world.kv == "propagate":
                walk = _walk(t, asked, votes, passed, fires)
            early = 0 if walk.fired is None else early + 1
            walks.append(walk)
        return walks

    def _threshold(self, gate: Criterion, exit_: int, rule: Rule) -> float | None:
        if gate not in self._manifest.exits[exit_].gates:
            return None
        return self._world.threshold(self._manifest, gate, rule.others)

    def _passed(self, said: ExitTrace, exit_: int, rule: Rule, confidence: Float) -> Bools:
        found = _above("learned", confidence, rule.learned)
        for gate in ("saturation", "router", "predictor"):
            bound = self._threshold(gate, exit_, rule)
            if bound is not None:
                found &= _above(gate, said.value(gate), bound)
        return found

    def _fires(self, said: ExitTrace, exit_: int, rule: Rule) -> Bools:
        found = said.confirmed.copy()
        for gate in ("max_prob", "margin", "patience"):
            bound = self._threshold(gate, exit_, rule)
            if bound is not None:
                found &= said.value(gate) > np.float32(bound)
        entropy = self._threshold("entropy", exit_, rule)
        return found if entropy is None else np.asarray(found & (said.entropy < np.float32(entropy)))


def _walk(
    t: int, asked: Sequence[int], votes: set[int], passed: Mapping[int, Bools], fires: Mapping[int, Bools]
) -> TokenWalk:  # fmt: skip
    found = list[Asked]()
    for g in asked:
        let_on = g in passed and bool(passed[g][t])
        found.append(Asked(g, let_on or g in votes))
        if let_on and fires[g][t]:
            return TokenWalk(tuple(found), g)
    return TokenWalk(tuple(found), None)


def _above(gate: str, values: Float, bound: float) -> Bools:
    """As rules.in_range: strictly above, and a value that the gate can have."""
    exact = values.astype(np.float64)
    return np.asarray((exact > bound) & (exact <= HIGHEST.get(gate, 1.0)))


def _last(said: ExitTrace, count: int) -> ExitTrace:
    own = ("token", "confidence", "max_prob", "margin", "entropy", "confirmed")
    more = {gate: values[-count:] for gate, values in said.more.items()}
    return replace(said, more=more, **{name: getattr(said, name)[-count:] for name in own})
