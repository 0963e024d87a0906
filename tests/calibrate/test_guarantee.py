"""Both guarantees in simulation, on documents whose tokens err together; and a test of tokens that breaks its own.

Each repetition draws fresh documents from a known population, so the true risk of every point is known.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eecompile.bundle.ranges import conformal_bound
from eecompile.calibrate.guarantee import Guarantee
from eecompile.errors import UsageError

RISK, ERROR, REPETITIONS, TOKENS, DOCUMENTS = 0.05, 0.05, 1200, 40, 150
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Documents with a difficulty each, beta distributed; at the point j a token errs with chance difficulty x boldness
    j, so that a document's errors are beta-binomial. Losses never fall from safe to bold."""

    shape: tuple[float, float] = (0.12, 0.9)
    points: int = 50

    @property
    def boldness(self) -> Floats:
        return np.linspace(0.02, 1.0, self.points)

    @property
    def truth(self) -> Floats:
        """The risk of each point."""
        a, b = self.shape
        return self.boldness * a / (a + b)

    def losses(self, rng: np.random.Generator, documents: int) -> Floats:
        """[documents, points], in whole tokens of TOKENS."""
        difficulty = rng.beta(*self.shape, size=(documents, 1))
        needed = rng.random((documents, TOKENS))  # a token errs from the boldness on at which its chance exceeds this
        least = np.sort(needed / difficulty, axis=1)
        return np.stack([np.searchsorted(row, self.boldness) for row in least]) / TOKENS


def chosen_points(
    guarantee: Guarantee, population: Population, repetitions: int, by_tokens: bool = False, shares: bool = False
) -> list[int]:
    """The point that each repetition chooses, -1 for none. by_tokens: as if every token were a document."""
    rng, found = np.random.default_rng(0), list[int]()
    pool = population.losses(rng, 20_000)
    for _ in range(repetitions):
        losses = pool[rng.integers(0, len(pool), DOCUMENTS)]
        if by_tokens:
            losses = np.repeat(losses, TOKENS, axis=0)  # the same means, TOKENS times as many units
        chosen = guarantee.test(losses, shares=shares)[1]
        found.append(-1 if chosen is None else chosen)
    return found


def risks(chosen: list[int], population: Population) -> Floats:
    """The true risk of what was chosen; closed exits lose nothing."""
    return np.append(population.truth, 0.0)[chosen]


def test_the_population_has_the_risks_that_it_says() -> None:
    population = Population()
    losses = population.losses(np.random.default_rng(3), 40_000)
    np.testing.assert_allclose(losses.mean(axis=0), population.truth, atol=0.004)
    assert (np.diff(losses, axis=1) >= 0).all()
    between = losses[:, -1].var() / (population.truth[-1] * (1 - population.truth[-1]) / TOKENS)
    assert between > 5, "the clusters are too weak to tell documents from tokens"


@pytest.mark.parametrize("shares", [False, True])
def test_learn_then_test_breaks_its_risk_no_more_often_than_stated(shares: bool) -> None:
    population = Population()
    chosen = chosen_points(Guarantee.of("ltt", RISK, ERROR), population, REPETITIONS, shares=shares)
    broken = float((risks(chosen, population) > RISK).mean())
    assert broken <= ERROR + 3 * math.sqrt(ERROR * (1 - ERROR) / REPETITIONS)
    assert np.mean(np.array(chosen) >= 0) > 0.9, "a test that chooses nothing proves nothing"


def test_a_test_of_tokens_breaks_it_far_more_often() -> None:
    population = Population()
    chosen = chosen_points(Guarantee.of("ltt", RISK, ERROR), population, 40, by_tokens=True)
    assert float((risks(chosen, population) > RISK).mean()) > 2 * ERROR


def test_conformal_control_keeps_its_risk_in_expectation_and_not_each_time() -> None:
    population = Population()
    chosen = chosen_points(Guarantee.of("crc", RISK, ERROR), population, REPETITIONS)
    found = risks(chosen, population)
    assert found.mean() <= RISK + 3 * found.std() / math.sqrt(REPETITIONS)
    assert found.mean() > 0.8 * RISK, "so safe that it proves nothing"
    assert float((found > RISK).mean()) > 2 * ERROR, "in expectation is less than with confidence"


def test_conformal_control_holds_where_documents_are_few_and_the_plain_mean_does_not() -> None:
    """All or nothing, 12 documents: without its allowance for the next document the risk would be above the level."""
    risk, documents, rng = 0.2, 12, np.random.default_rng(1)
    truth = np.linspace(0.0, 0.6, 61)
    guarantee, with_it, without = Guarantee.of("crc", risk, ERROR), list[float](), list[float]()
    for _ in range(REPETITIONS):
        losses = (rng.random((documents, 1)) < truth).astype(np.float64)
        chosen = guarantee.test(losses)[1]
        with_it.append(0.0 if chosen is None else truth[chosen])
        without.append(truth[np.flatnonzero(losses.mean(axis=0) <= risk)[-1]])
    noise = 3 * np.std(with_it) / math.sqrt(REPETITIONS)
    assert np.mean(with_it) <= risk + noise
    assert np.mean(without) > risk + noise


def test_a_loss_that_falls_again_counts_at_its_highest() -> None:
    losses = np.zeros((40, 3))
    losses[:8, 1] = 1.0
    tested, chosen = Guarantee.of("crc", 0.1, ERROR).test(losses)
    assert [t.risk for t in tested] == [0.0, 0.2, 0.2]
    assert chosen == 0
    assert [t.p_value for t in tested] == [None] * 3


@given(st.integers(1, 400), st.floats(0.005, 0.5))
def test_documents_needed_are_the_fewest_with_which_nothing_lost_passes(documents: int, risk: float) -> None:
    guarantee = Guarantee.of("crc", risk, ERROR)
    passes = guarantee.test(np.zeros((documents, 1)))[1] is not None
    assert passes == (documents >= guarantee.needed) or abs(conformal_bound(documents, risk)) < 1e-6
    assert Guarantee.of("ltt", 0.05, 0.05).needed == 59


def test_all_pass_is_whether_the_walk_goes_on() -> None:
    guarantee = Guarantee.of("ltt", 0.1, 0.1)
    good, bad = np.zeros(60), np.full(60, 0.1)
    assert guarantee.all_pass([good])
    assert guarantee.all_pass([good, good])
    assert not guarantee.all_pass([good, bad])
    assert not guarantee.all_pass([bad, good])


@pytest.mark.parametrize(("method", "risk", "error"), [("both", 0.1, 0.1), ("ltt", 0.0, 0.1), ("crc", 1.0, 0.1)])
def test_what_is_no_guarantee_is_refused(method: str, risk: float, error: float) -> None:
    with pytest.raises(UsageError):
        Guarantee.of(method, risk, error)
