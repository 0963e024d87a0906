"""When an exit fires, and which other exits it needs to have been asked before it.

What a gate goes by depends on nothing but the token's hidden states at the exits, open or not: patience counts every
exit's vote, saturation compares with the exit before. So an exit that is closed is still listened to where a deeper one
that is open needs it, and closing exits only ever takes fires away, which is what a calibration rests on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.schema import Criterion
from eecompile.shapes import ExitShape, Schedule, router_of

Float = NDArray[np.float32]
HIGHEST: Mapping[str, float] = {"saturation": 1 + c.COSINE_SLACK}  # that a cheap gate can go by; 1 for the others


@dataclass(frozen=True)
class ExitRule:
    """When one exit fires: every gate strictly bolder than its threshold.

    cheap: thresholds of the gates that need no head. bounds: float32 [3] for the head's decision. patience: exits in a
    row, this one included, that have to agree are more than this. schedule: what moves max_prob's and margin's bounds.
    opens: whether it may emit; an exit that may not is only listened to. votes: its head runs whatever its gates say.
    """

    exit: int
    layer: int
    bounds: Float
    cheap: Mapping[Criterion, float] = field(default_factory=dict)
    patience: float | None = None
    schedule: Schedule | None = None
    opens: bool = True
    votes: bool = False

    @classmethod
    def of(
        cls, exit_: int, layer: int, thresholds: Mapping[Criterion, float], schedule: Schedule | None = None
    ) -> "ExitRule | None":
        """The rule of these thresholds; None where one of them is `never`."""
        if "never" in thresholds:
            return None
        cheap: dict[Criterion, float] = {k: v for k, v in thresholds.items() if k in c.CHEAP_CRITERIA}
        return cls(exit_, layer, head_bounds(thresholds), cheap, thresholds.get("patience"), schedule)

    def passes_cheap(self, values: Mapping[Criterion, float]) -> bool:
        """Whether the cheap gates let a row go on to the head, given what each goes by."""
        return all(in_range(criterion, values[criterion], bound) for criterion, bound in self.cheap.items())


def head_bounds(thresholds: Mapping[Criterion, float]) -> Float:
    """float32 [3] for a head's decision: max_prob, margin, entropy; NO_BOUND where none is given."""
    given: Mapping[str, float] = thresholds  # type: ignore[assignment]
    return np.array([given.get(name, free) for name, free in zip(c.HEAD_CRITERIA, c.NO_BOUND, strict=True)], np.float32)


def in_range(criterion: str, value: float, bound: float) -> bool:
    """Whether a cheap gate's value is above its threshold and a value that it can have; NaN and infinity are not."""
    return bound < value <= HIGHEST.get(criterion, 1.0)


def with_listeners(rules: Sequence[ExitRule | None], exits: Sequence[ExitShape]) -> list[ExitRule | None]:
    """`rules` with what open exits need of the ones before them: closed exits that are asked all the same, and heads
    that run for their vote alone."""
    asked, votes = listeners([None if r is None else r.patience for r in rules], exits, _open(rules))
    found = list(rules)
    for i in sorted(asked | votes):
        rule = found[i]
        if rule is None:
            rule = ExitRule(i, exits[i].layer, np.array(c.NEVER, np.float32), opens=False)
        found[i] = replace(rule, votes=rule.votes or i in votes)
    return found


def listeners(
    patience: Sequence[float | None], exits: Sequence[ExitShape], opened: Sequence[int]
) -> tuple[set[int], set[int]]:
    """(exits that have to be asked, exits whose head has to run) for the exits in `opened`, which may be among them.

    patience: the threshold of each exit that has one.
    """
    asked, votes = set[int](), set[int]()
    for g in opened:
        gates, least = exits[g].gates, patience[g]
        if "saturation" in gates and g:
            asked.add(g - 1)
        if "router" in gates and (source := router_of(exits, g)) is not None and source < g:
            asked.add(source)
        if "predictor" in gates:
            asked |= {i for i in range(g) if exits[i].predictor is not None}
        if least is not None:
            votes |= set(range(max(0, g - math.floor(least)), g))
    return asked, votes


def _open(rules: Sequence[ExitRule | None]) -> list[int]:
    return [i for i, rule in enumerate(rules) if rule is not None]
