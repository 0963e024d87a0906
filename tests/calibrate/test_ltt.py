"""Learn-then-Test: p-values against exact numbers, the guarantee in simulation, the union loss under safer policies."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eecompile.calibrate.ltt import (
    betting,
    binomial_cdf,
    documents_needed,
    fixed_sequence,
    hoeffding,
    hoeffding_bentkus,
    union_losses,
)

ERROR = 0.05


def exact_cdf(k: int, n: int, p: Fraction) -> Fraction:
    """P(Binomial(n, p) <= k) in rational arithmetic."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1)), Fraction(0))


@pytest.mark.parametrize("p", [Fraction(1, 50), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)])
@pytest.mark.parametrize("n", [1, 7, 60, 400])
def test_binomial_cdf_is_the_exact_sum(n: int, p: Fraction) -> None:
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        assert binomial_cdf(k, n, float(p)) == pytest.approx(float(exact_cdf(k, n, p)), rel=1e-9, abs=1e-300)


def test_binomial_cdf_of_many_documents_neither_overflows_nor_vanishes() -> None:
    assert binomial_cdf(0, 100_000, 0.02) == pytest.approx(0.98**100_000, rel=1e-6)
    assert binomial_cdf(2000, 100_000, 0.02) == pytest.approx(0.5, abs=0.01)


def test_hoeffding_bentkus_of_known_cases() -> None:
    assert hoeffding_bentkus(0.0, 100, 0.05) == pytest.approx(0.95**100)
    assert hoeffding_bentkus(0.05, 100, 0.05) == 1.0
    assert hoeffding_bentkus(0.9, 100, 0.05) == 1.0
    bentkus = math.e * float(exact_cdf(9, 900, Fraction(1, 50)))
    divergence = 0.01 * math.log(0.5) + 0.99 * math.log(0.99 / 0.98)
    assert hoeffding_bentkus(0.01, 900, 0.02) == pytest.approx(min(bentkus, math.exp(-900 * divergence)))


@given(st.floats(0, 1), st.integers(1, 2000), st.floats(0.001, 0.999))
def test_p_values_are_probabilities_and_the_tighter_one_is_no_larger(loss: float, n: int, risk: float) -> None:
    tight, plain = hoeffding_bentkus(loss, n, risk), hoeffding(loss, n, risk)
    assert 0 <= tight <= plain * (1 + 1e-9) <= 1 + 1e-9


@given(st.integers(1, 500), st.floats(0.01, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_p_values_rise_with_the_loss(n: int, risk: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert hoeffding_bentkus(low, n, risk) <= hoeffding_bentkus(high, n, risk) * (1 + 1e-9)


@pytest.mark.parametrize("risk", [Fraction(1, 50), Fraction(1, 10), Fraction(2, 5)])
@pytest.mark.parametrize("n", [20, 59, 149])
def test_p_values_are_valid_where_the_risk_is_exactly_at_the_bound(n: int, risk: Fraction) -> None:
    """P(p <= e) <= e of documents that lose all or nothing, by enumeration."""
    chances = [math.comb(n, k) * risk**k * (1 - risk) ** (n - k) for k in range(n + 1)]
    p_values = [hoeffding_bentkus(k / n, n, float(risk)) for k in range(n + 1)]
    for error in (0.01, 0.05, 0.2):
        passed = sum(chance for chance, p in zip(chances, p_values, strict=True) if p <= error)
        assert float(passed) <= error


@pytest.mark.parametrize(("risk", "documents"), [(0.02, 150), (0.05, 59), (0.1, 29)])
def test_documents_needed_is_the_least_number_that_passes_without_a_loss(risk: float, documents: int) -> None:
    assert documents_needed(risk, ERROR) == documents
    most = [betting(np.zeros((n, 1)), risk)[0] for n in (documents, documents - 1)]
    assert most[0] <= ERROR < most[1]
    assert hoeffding_bentkus(0.0, documents, risk) <= ERROR


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.0, 0.5, 1.0), (0.1, 0.3)])
@pytest.mark.parametrize("documents", [1, 4, 7])
def test_betting_is_valid_where_the_risk_is_exactly_at_the_bound(levels: tuple[float, ...], documents: int) -> None:
    """P(p <= e) <= e over every sequence of losses of these levels, all equally likely."""
    risk = float(np.mean(levels))
    rows = np.array(list(itertools.product(levels, repeat=documents))).T
    p_values = betting(rows, risk)
    for error in (0.05, 0.3, 0.7):
        assert np.mean(p_values <= error) <= error
    assert (betting(np.sort(rows, axis=0), risk) <= 1).all()


def test_betting_shows_what_all_or_nothing_could_not() -> None:
    """500 documents of 60 tokens that lose one in a hundred, unevenly: enough for a risk of two by betting alone."""
    rng = np.random.default_rng(0)
    losses = rng.binomial(60, rng.beta(0.3, 0.3 / 0.01 - 0.3, size=(500, 1))) / 60
    assert 0.008 < losses.mean() < 0.012
    assert betting(losses, 0.02)[0] <= ERROR < hoeffding_bentkus(float(losses.mean()), 500, 0.02)


def test_a_risk_of_two_percent_takes_about_900_documents_that_lose_one() -> None:
    assert hoeffding_bentkus(0.01, 880, 0.02) <= ERROR < hoeffding_bentkus(0.01, 840, 0.02)


def test_the_walk_stops_at_the_first_failure() -> None:
    assert fixed_sequence([0.01, 0.05, 0.06, 0.0], ERROR) == 1
    assert fixed_sequence([0.01, 0.02], ERROR) == 1
    assert fixed_sequence([0.06, 0.0], ERROR) is None
    assert fixed_sequence([math.nan, 0.0], ERROR) is None
    assert fixed_sequence([], ERROR) is None


def clustered_losses(count: int, points: int, seed: int) -> NDArray[np.float64]:
    """Losses of documents [count, points]: most hardly lose, some lose much, all more on a bolder point."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(0.25, 2.0, size=(count, 1))
    boldness = np.linspace(0.02, 1.0, points)[None, :]
    tokens = 40
    return rng.binomial(tokens, difficulty * boldness) / tokens


def violations(pool: NDArray[np.float64], documents: int, tokens: int, repetitions: int) -> tuple[float, float]:
    """Share of calibrations whose chosen point truly breaks a risk of 0.05, and of those that chose one. `tokens`: how
    many units a document is taken for."""
    rng, truth, risk = np.random.default_rng(1), pool.mean(axis=0), 0.05
    broken = chosen = 0
    for _ in range(repetitions):
        losses = pool[rng.integers(0, len(pool), documents)].mean(axis=0)
        point = fixed_sequence([hoeffding_bentkus(float(x), documents * tokens, risk) for x in losses], ERROR)
        chosen += point is not None
        broken += point is not None and truth[point] > risk
    return broken / repetitions, chosen / repetitions


def test_the_guarantee_holds_on_clustered_documents_and_would_not_by_tokens() -> None:
    pool = clustered_losses(20_000, 24, seed=0)
    sampling = 3 * math.sqrt(ERROR * (1 - ERROR) / 1500)
    broken, chosen = violations(pool, documents=120, tokens=1, repetitions=1500)
    assert broken <= ERROR + sampling
    assert chosen > 0.9
    by_tokens, _ = violations(pool, documents=120, tokens=40, repetitions=300)
    assert by_tokens > 2 * ERROR, "the clusters are too weak to tell documents from tokens"


@st.composite
def decisions(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """fires [T, exits], fires under a safer policy, disagrees [T, exits], documents [T]."""
    tokens, exits = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=tokens * exits, max_size=tokens * exits)
    bold, keep, wrong = (np.array(draw(flags)).reshape(tokens, exits) for _ in range(3))
    documents = draw(st.lists(st.integers(0, 3), min_size=tokens, max_size=tokens))
    return bold, bold & keep, wrong, np.sort(documents)


@given(decisions())
def test_no_safer_policy_loses_more_than_the_union(drawn: tuple[NDArray[np.bool_], ...]) -> None:
    """Safer thresholds, fewer exits, a minimum depth and forced full depth all only take fires away."""
    bold, safer, wrong, documents = drawn
    numbers = np.unique(documents, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    union = union_losses(bold & wrong, numbers, count)
    first = safer.argmax(axis=1)
    emitted_wrong = safer.any(axis=1) & wrong[np.arange(len(wrong)), first]
    emitted = union_losses(emitted_wrong[:, None], numbers, count)
    assert (emitted <= union_losses(safer & wrong, numbers, count)).all()
    assert (union_losses(safer & wrong, numbers, count) <= union).all()
    assert ((union >= 0) & (union <= 1)).all()


def test_losses_are_means_over_each_documents_own_tokens() -> None:
    wrong = np.array([[0, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, 0]], bool)
    losses = union_losses(wrong, np.array([0, 0, 1, 1, 1, 1]), 2)
    assert losses.tolist() == [0.5, 0.25]
