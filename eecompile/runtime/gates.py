"""Asking an exit whether a token may stop there: cheap gates, then a head, then what counts votes or candidates.

One ask serves N rows of N sequences. What a sequence has to remember for it is its GateState, which is a function of
the tokens it has emitted: a walk begins anew at each token, and an adaptive threshold learns only from tokens that are
certain. So rolling tokens back leaves nothing to undo.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eecompile.runtime.askers import ExitAsker, ExitSaid
from eecompile.runtime.heads import Decisions, Head
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.sampling import Sampling, sample
from eecompile.runtime.schedules import AdaptiveThreshold, decayed
from eecompile.runtime.walk import Walk, joined, parted
from eecompile.shapes import Adaptive, Decay, ExitShape

Float = NDArray[np.float32]
Answer = int  # a token id
_MOVED = (0, 1)  # columns of the bounds that a schedule moves: max_prob and margin


@dataclass(frozen=True)
class _Note:
    """What an exit with an adaptive threshold said, until the full model's token is known."""

    exit: int
    confidence: float
    token: int


@dataclass
class GateState:
    """What one sequence's exits go by: their rules (None where one stays closed) and what they have to remember.

    sampling: how its tokens are chosen. free: whether an adaptive threshold may be bolder than the policy's (drafts).
    position: of the token that is walking down; `first` of the one after the prompt. declined: heads that ran for an
    exit that then did not fire, by head.
    """

    rules: Sequence[ExitRule | None] = ()
    sampling: Sampling = field(default_factory=Sampling)
    free: bool = False
    first: int = 0
    position: int = 0
    walk: Walk = field(default_factory=Walk)
    declined: Counter[str] = field(default_factory=Counter)
    learners: dict[int, AdaptiveThreshold] = field(default_factory=dict)
    notes: dict[int, list[_Note]] = field(default_factory=dict)

    def start(self, first: int) -> None:
        """A prompt was read; the token at position `first` follows it."""
        self.first, self.position, self.walk = first, first, Walk()
        self.learners, self.notes = {}, {}

    def begin(self, position: int) -> None:
        """The walk begins whose outcome is the token at `position`. A walk that was rolled back is forgotten."""
        self.position, self.walk = position, Walk()
        if self.notes:
            self.notes.pop(position, None)

    def learn(self, position: int, token: int) -> None:
        """The full model's token for `position`, of which nothing before can change any more."""
        for note in self.notes.pop(position, ()):
            self.learners[note.exit].learn(note.confidence, note.token == token)

    @property
    def open_exits(self) -> list[int]:
        """The exits that are asked."""
        return [exit_ for exit_, rule in enumerate(self.rules) if rule is not None]

    def bounds(self, rule: ExitRule) -> Float:
        """The rule's bounds, moved by its schedule."""
        if rule.schedule is None:
            return rule.bounds
        moved: Float = rule.bounds.copy()
        for column in _MOVED:
            if moved[column] >= 0:
                moved[column] = self._moved(rule, float(moved[column]))
        return moved

    def note(self, rule: ExitRule, max_prob: float, margin: float, token: int) -> None:
        """Keep what an exit with an adaptive threshold said of the current token: its margin if that is a gate."""
        if isinstance(rule.schedule, Adaptive):
            self.learners.setdefault(rule.exit, AdaptiveThreshold(rule.schedule))
            value = margin if rule.bounds[1] >= 0 else max_prob
            self.notes.setdefault(self.position, []).append(_Note(rule.exit, value, token))

    def _moved(self, rule: ExitRule, bound: float) -> float:
        if isinstance(rule.schedule, Decay):
            return decayed(bound / 0.9, self.position - self.first, rule.schedule.tau, rule.schedule.tokens)
        learner = self.learners.get(rule.exit)
        if learner is None or learner.threshold is None:
            return bound
        return learner.threshold if self.free else max(bound, learner.threshold)


class ExitGates:
    """The exits of a session or a batch. Not thread-safe. heads: by name, "full" and the small ones."""

    def __init__(
        self, exits: Sequence[ExitShape], askers: Sequence[ExitAsker], heads: Mapping[str, Head]
    ) -> None:  # fmt: skip
        self._exits, self._askers, self._heads = exits, askers, heads

    def layer(self, exit_: int) -> int:
        """Layers that run before exit `exit_`."""
        return self._exits[exit_].layer

    def ask(
        self, exit_: int, rows: Float, states: Sequence[GateState], slots: Sequence[int] = (0,)
    ) -> list[Answer | None]:
        """The token that exit `exit_` emits for each of `rows` [N, D], the newest of the sequence in its slot; None to
        go on.

        The exit has to have a rule in every state; `begin` was called for every token that is walking down.
        """
        rules = [_rule(state, exit_) for state in states]
        walk = joined([state.walk for state in states])
        said = self._askers[exit_](rows, walk, slots)
        passed = self.let_on(exit_, rows, rules, said, states)
        answers: list[Answer | None] = [None] * len(states)
        asked = [i for i, rule in enumerate(rules) if passed[i] or rule.votes]
        if asked:
            self._decide(exit_, rules, said, walk, states, passed, asked, answers)
        parted(walk, [state.walk for state in states])
        return answers

    def let_on(
        self, exit_: int, rows: Float, rules: Sequence[ExitRule], said: ExitSaid, states: Sequence[GateState]
    ) -> list[bool]:  # fmt: skip
        """Which of the rows [N, D] the cheap gates let on to a head. A subclass that overrides this decides itself, as
        training does that explores; `said` are views that the next pass overwrites."""
        return [rule.opens and passes(rule, said, i) for i, rule in enumerate(rules)]

    def _decide(
        self, exit_: int, rules: Sequence[ExitRule], said: ExitSaid, walk: Walk, states: Sequence[GateState],
        passed: list[bool], asked: list[int], answers: list[Answer | None],
    ) -> None:  # fmt: skip
        """Run the head on the rows `asked`, and set the answers of those that fire."""
        name = self._exits[exit_].head
        hidden = said.hidden if len(asked) == len(states) else said.hidden[asked]
        bounds = np.stack([states[i].bounds(rules[i]) for i in asked])
        wanted = any(not states[i].sampling.greedy for i in asked)
        decided = self._heads[name](hidden, bounds, logits=wanted)
        patient = _patient(exit_, rules, walk, decided, asked)
        for row, i in enumerate(asked):
            state = states[i]
            if passed[i]:
                state.note(rules[i], float(decided.max_prob[row]), float(decided.margin[row]), int(decided.token[row]))
            if passed[i] and decided.exit_flag[row] and patient[i] and _confirmed(said, decided, row, i):
                answers[i] = choose(decided, row, state.position, state.sampling)
            else:
                state.declined[name] += 1


def _patient(exit_: int, rules: Sequence[ExitRule], walk: Walk, decided: Decisions, asked: list[int]) -> Sequence[bool]:
    """Whether patience lets each row stop; a row whose head did not run has no vote."""
    if all(rule.patience is None and not rule.votes for rule in rules):
        return [True] * len(rules)
    tokens = np.full(len(rules), -1, np.int64)
    tokens[asked] = decided.token
    streak = walk.vote(exit_, tokens).tolist()
    return [rule.patience is None or n > rule.patience for rule, n in zip(rules, streak, strict=True)]


def _rule(state: GateState, exit_: int) -> ExitRule:
    rule = state.rules[exit_]
    assert rule is not None, "a closed exit was asked"
    return rule


def choose(decided: Decisions, row: int, position: int, how: Sampling) -> int:
    """The token for `position` from one row: the head's arg-max, or a sample of its logits."""
    if decided.logits is None or how.greedy:
        return int(decided.token[row])
    return sample(decided.logits[row], position, how, decided.ids)


def choose_logits(logits: NDArray[np.floating], position: int, how: Sampling) -> int:
    """The token for `position` from logits [V] that no head decided."""
    return int(logits.argmax()) if how.greedy else sample(logits.astype(np.float32), position, how)


def passes(rule: ExitRule, said: ExitSaid, row: int) -> bool:
    """Whether the cheap gates of `rule` let row number `row` on to a head."""
    return not rule.cheap or rule.passes_cheap({k: float(said.values[k][row]) for k in rule.cheap})


def _confirmed(said: ExitSaid, decided: Decisions, row: int, i: int) -> bool:
    """SpecEE's confirmation: the head's arg-max is one of the candidates."""
    return said.candidates is None or bool((said.candidates[i] == decided.token[row]).any())
