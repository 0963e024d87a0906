"""What a rollout leaves behind: plain values that costs, rewards and the learner share.

T tokens of a rollout, N decisions in it, D hidden size. A decision is a coin that one gate tossed about one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Asked(NamedTuple):
    """An exit that was asked on a token's way down, and whether its head ran."""

    exit: int
    head: bool


class TokenWalk(NamedTuple):
    """How a token was made: the exits asked in order, and the one that emitted it (None: full depth)."""

    asked: tuple[Asked, ...]
    fired: int | None


@dataclass(frozen=True)
class Decisions:
    """token, exit [N]: what each was about. place [N]: which of the token's asked exits it was. leave [N]: what was
    chosen, with probability `chance` [N] of leaving. rows [N, D]: the hidden state at the exit."""

    token: Ints
    exit: Ints
    place: Ints
    leave: Bools
    chance: Double
    rows: Float


@dataclass(frozen=True)
class Rollout:
    """One continuation. `ids` has T + 1 tokens: the first is prefill's, and no gate was asked about it. walks: of the
    T others. ended: by an end-of-sequence token, so that nothing follows."""

    prompt: Sequence[int]
    ids: list[int]
    walks: list[TokenWalk]
    decisions: Decisions
    ended: bool


@dataclass(frozen=True)
class Played:
    """A rollout as the learner sees it.

    group: the prompt that it is compared within. quality [T]: what each token adds to Q. cost [T]: what it adds to
    C / C_full, the last one including what was left pending. token, exit, leave [N] and state [N, D]: the decisions.
    sunk [N]: the part of cost[token] that was spent before the decision.
    """

    group: int
    quality: Double
    cost: Double
    token: Ints
    exit: Ints
    leave: Bools
    state: Float
    sunk: Double

    def reward(self, weight: float) -> float:
        """R = Q - weight * C / C_full."""
        return float(self.quality.sum() - weight * self.cost.sum())

    def to_go(self, weight: float) -> Double:
        """What follows each decision [N]: the reward from its token on, without what was spent before it."""
        rest = np.cumsum((self.quality - weight * self.cost)[::-1])[::-1]
        return np.asarray(rest[self.token] + weight * self.sunk, np.float64)
