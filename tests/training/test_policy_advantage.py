"""What a decision is credited with, by hand; and what each scaling does to the weight of costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from eecompile_training.policy.advantage import advantages, scales
from eecompile_training.policy.records import Played

pytestmark = pytest.mark.torch


def played(group: int, quality: list[float], cost: list[float], decided: list[tuple[int, int, bool, float]]) -> Played:
    """Decisions as (token, exit, leave, sunk)."""
    token, exit_, leave, sunk = zip(*decided, strict=True)
    states = np.zeros((len(decided), 2), np.float32)
    columns: list[Any] = [np.array(token), np.array(exit_), np.array(leave), states, np.array(sunk, np.float64)]
    return Played(group, np.array(quality), np.array(cost), *columns)


def test_a_decision_is_credited_with_what_follows_it() -> None:
    one = played(0, [0.5, 0.0], [0.3, 0.4], [(0, 0, True, 0.1), (1, 0, False, 0.1), (1, 1, True, 0.25)])
    assert one.reward(0.5) == pytest.approx(0.5 - 0.5 * 0.7)
    assert one.to_go(0.5) == pytest.approx([0.5 - 0.5 * (0.2 + 0.4), -0.5 * 0.3, -0.5 * 0.15])


def pair(good: float, bad: float, *, cheap: float = 0.2, dear: float = 0.6) -> list[Played]:
    return [played(0, [good], [cheap], [(0, 0, True, 0.0)]), played(0, [bad], [dear], [(0, 0, False, 0.0)])]


def credited(those: list[Played], weight: float, scaling: Any) -> list[float]:
    scale = scales([(one.group, one.reward(weight)) for one in those], scaling)
    return [float(a[0]) for a in advantages(those, weight, scale) if a is not None]


def test_scaling_by_the_group_cancels_the_weight_where_all_quality_is_equal() -> None:
    same = pair(1.0, 1.0)
    assert credited(same, 0.1, "group") == pytest.approx(credited(same, 0.9, "group"), rel=0.01)
    assert credited(same, 0.9, "none")[0] == pytest.approx(9 * credited(same, 0.1, "none")[0])


def test_scaling_by_the_batch_keeps_the_weight_between_groups() -> None:
    other = [played(1, [1.0], [0.1], [(0, 0, True, 0.0)]), played(1, [0.0], [0.1], [(0, 0, False, 0.0)])]
    little, much = (credited([*pair(1.0, 1.0), *other], weight, "batch") for weight in (0.1, 0.9))
    assert much[0] > 5 * little[0] > 0


def test_what_is_better_than_the_group_is_positive() -> None:
    right, wrong = credited(pair(1.0, 0.0), 0.5, "group")
    assert right == pytest.approx(-wrong)
    assert right == pytest.approx(1, rel=1e-3)


def test_groups_without_any_spread_are_left_out() -> None:
    same = [played(3, [1.0], [0.5], [(0, 0, True, 0.0)]) for _ in range(4)]
    assert scales([(one.group, one.reward(0.5)) for one in same], "batch") == {}
    assert advantages(same, 0.5, {}) == [None] * 4


def test_decisions_are_compared_with_those_at_the_same_exit_of_the_same_token() -> None:
    first = played(0, [1.0, 0.0], [0.0, 0.0], [(0, 0, False, 0.0), (1, 0, True, 0.0)])
    second = played(0, [0.0, 0.0], [0.0, 0.0], [(0, 0, True, 0.0)])
    found = advantages([first, second], 1.0, {0: 1.0})
    assert [a.tolist() for a in found if a is not None] == [[0.5, 0.0], [-0.5]]  # nobody else stood at token 1
