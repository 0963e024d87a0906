"""Exits that toss coins: the runtime's gates, with each learned gate's probability acted on and written down.

Only the learned gate is replaced. Other gates that an exit has (a head's confidence, say) are part of the world: they
have to pass as ever, after the coin.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eecompile.runtime.askers import ExitSaid
from eecompile.runtime.decode import Emitted
from eecompile.runtime.gates import ExitGates, GateState, passes
from eecompile.runtime.rules import ExitRule
from eecompile_training.policy.records import Asked, Decisions, Float, TokenWalk


@dataclass
class Diary:
    """What happened to one sequence. coin: its own stream of numbers from 0 to 1, one for each decision; a gate leaves
    where its probability is above it."""

    coin: Callable[[], float]
    walks: list[TokenWalk] = field(default_factory=list)
    _asked: list[Asked] = field(default_factory=list)
    _said: list[tuple[int, int, int, bool, float]] = field(default_factory=list)
    _rows: list[Float] = field(default_factory=list)

    def decide(self, rule: ExitRule, said: ExitSaid, rows: Float, at: int) -> bool:
        """Whether row `at` goes on to the head. A gate that gives no probability means continue, and is no decision."""
        leave = False
        if rule.opens and passes(rule, said, at):
            probability = float(said.values["learned"][at])
            if math.isfinite(probability) and 0 <= probability <= 1:
                leave = bool(self.coin() < probability)
                self._said.append((len(self.walks), rule.exit, len(self._asked), leave, probability))
                self._rows.append(rows[at].copy())
        self._asked.append(Asked(rule.exit, leave or rule.votes))
        return leave

    def emitted(self, token: Emitted, layers: Sequence[int]) -> None:
        """Note that the token was emitted; layers: those before each exit."""
        fired = self._asked[-1].exit if self._asked and layers[self._asked[-1].exit] == token.depth else None
        self.walks.append(TokenWalk(tuple(self._asked), fired))
        self._asked.clear()

    def decisions(self, hidden: int) -> Decisions:
        """All decisions so far; `hidden` is D."""
        columns = list(zip(*self._said, strict=True)) or [()] * 5
        token, exit_, place = (np.array(column, np.int64) for column in columns[:3])
        rows = np.stack(self._rows) if self._rows else np.zeros((0, hidden), np.float32)
        return Decisions(token, exit_, place, np.array(columns[3], bool), np.array(columns[4], np.float64), rows)


class ActingGates(ExitGates):
    """The gates of sequences that keep diaries. `diaries`: by the identity of each sequence's GateState.

    The rules of the exits that are trained leave their learned gate out.
    """

    diaries: dict[int, Diary]

    def let_on(
        self, exit_: int, rows: Float, rules: Sequence[ExitRule], said: ExitSaid, states: Sequence[GateState]
    ) -> list[bool]:  # fmt: skip
        """See ExitGates."""
        return [
            self.diaries[id(state)].decide(rule, said, rows, i)
            for i, (rule, state) in enumerate(zip(rules, states, strict=True))
        ]
