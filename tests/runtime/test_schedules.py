"""CALM's decay is its formula; FREE's threshold finds where the exit starts to be right."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.runtime.gates import GateState
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.schedules import AdaptiveThreshold, Moments, decayed, lowest_likely
from eecompile.shapes import Adaptive, Decay

FREE = Adaptive(kind="adaptive")


@given(base=st.floats(0, 1.2), step=st.integers(0, 500), tokens=st.integers(1, 300))
def test_decay_is_calms_formula(base: float, step: int, tokens: int) -> None:
    expected = np.clip(0.9 * base + 0.1 * np.exp(-4 * step / tokens), 0, 1)
    assert decayed(base, step, 4.0, tokens) == pytest.approx(expected, abs=1e-12)


@given(bound=st.floats(0, 1), step=st.integers(0, 500))
def test_the_policys_threshold_is_what_decay_ends_at(bound: float, step: int) -> None:
    rule = ExitRule.of(0, 1, {"max_prob": bound, "entropy": 1.0}, Decay(kind="decay", tokens=50))
    assert rule is not None
    state = GateState()
    state.start(7)
    state.begin(7 + step)
    moved = state.bounds(rule)
    assert moved[0] >= rule.bounds[0] - 1e-6
    assert moved[0] == pytest.approx(min(1.0, bound + 0.1 * math.exp(-4 * step / 50)), abs=1e-6)
    np.testing.assert_array_equal(moved[1:], rule.bounds[1:])


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 5.0), (8.0, 2.0), (0.7, 0.9)])
def test_moments_find_the_beta_distribution(alpha: float, beta: float) -> None:
    moments = Moments()
    for value in np.random.default_rng(0).beta(alpha, beta, 20_000):
        moments.add(float(value))
    found = moments.beta()
    assert found is not None
    assert found == pytest.approx((alpha, beta), rel=0.1)


def test_what_has_no_spread_has_no_distribution() -> None:
    moments = Moments()
    for _ in range(5):
        moments.add(0.5)
    assert moments.beta() is None
    assert Moments().beta() is None


def test_the_threshold_is_where_the_likelihoods_meet() -> None:
    """Likelihood ratio by scipy-free quadrature-free densities: right above the crossing, by count of grid points."""
    right, wrong = (8.0, 3.0), (3.0, 5.0)

    def density(x: float, a: float, b: float) -> float:
        return x ** (a - 1) * (1 - x) ** (b - 1) * math.gamma(a + b) / math.gamma(a) / math.gamma(b)

    grid = np.linspace(0.3, 0.9, 10)
    likely = [density(x, *right) / (density(x, *right) + density(x, *wrong)) > 0.4 for x in grid]
    assert likely == sorted(likely), "a case with one crossing"
    assert lowest_likely(right, wrong, FREE) == pytest.approx(grid[likely.index(True)])
    assert lowest_likely(wrong, right, FREE) == lowest_likely(right, wrong, FREE), "the higher mean is the right one"


def test_it_learns_at_most_so_often_and_only_from_numbers() -> None:
    rng, learner = np.random.default_rng(1), AdaptiveThreshold(Adaptive(kind="adaptive", updates=20))
    learner.learn(float("nan"), True)
    assert (learner.agreed.count, learner.threshold) == (0, None)
    for _ in range(100):
        agrees = bool(rng.random() < 0.5)
        learner.learn(float(rng.beta(8, 2) if agrees else rng.beta(2, 6)), agrees)
    assert learner.updates == 20
    assert learner.threshold is not None
    assert 0.3 <= learner.threshold <= 0.7


def adaptive_state(*, free: bool, pairs: list[tuple[float, bool]]) -> tuple[GateState, ExitRule]:
    rule = ExitRule.of(0, 1, {"max_prob": 0.6}, FREE)
    assert rule is not None
    state = GateState(free=free)
    state.start(1)
    for position, (confidence, agrees) in enumerate(pairs, 2):
        state.begin(position)
        state.note(rule, confidence, 0.0, 7)
        state.learn(position, 7 if agrees else 8)
    return state, rule


EASY = [(0.2 + 0.01 * (i % 10), False) for i in range(30)] + [(0.5 + 0.01 * (i % 30), True) for i in range(30)]
HARD = [(0.6 + 0.01 * (i % 20), False) for i in range(30)] + [(0.9 + 0.002 * (i % 30), True) for i in range(30)]


def test_confident_mode_only_ever_raises_it_and_drafts_are_free() -> None:
    for pairs, bolder in ((EASY, True), (HARD, False)):
        (kept, rule), (free, _) = (adaptive_state(free=f, pairs=pairs) for f in (False, True))
        threshold = free.learners[0].threshold
        assert threshold is not None
        assert (threshold < 0.6) == bolder
        assert free.bounds(rule)[0] == np.float32(threshold)
        assert kept.bounds(rule)[0] == np.float32(max(0.6, threshold))


def test_a_walk_that_was_rolled_back_teaches_nothing() -> None:
    rule = ExitRule.of(0, 1, {"max_prob": 0.6}, FREE)
    assert rule is not None
    state = GateState()
    state.start(1)
    state.begin(2)
    state.note(rule, 0.9, 0.0, 7)
    state.begin(2)  # the token at 2 was another one after all
    state.learn(2, 7)
    assert state.learners[0].agreed.count == 0
    state.start(1)
    assert state.learners == {}
