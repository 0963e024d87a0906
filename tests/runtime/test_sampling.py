"""Sampling: the distribution is softmax's, the noise is fixed for ever, and ranges are checked."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.errors import UsageError
from eecompile.runtime.sampling import Sampling, gumbel_noise, sample

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, 1.0, -3.0], np.float32)
DRAWS = 8_000


def softmax(scores: Any) -> Any:
    weights = np.exp(np.asarray(scores, np.float64) - np.max(scores))
    return weights / weights.sum()


def frequencies(how: Sampling, by_seed: bool = False) -> Any:
    """How often each id is drawn over DRAWS positions, or over as many seeds."""
    if by_seed:
        drawn = [sample(LOGITS, 5, Sampling(how.temperature, how.top_k, how.top_p, seed)) for seed in range(DRAWS)]
    else:
        drawn = [sample(LOGITS, position, how) for position in range(DRAWS)]
    return np.bincount(drawn, minlength=len(LOGITS))


def assert_distribution(counts: Any, probability: Any) -> None:
    """Pearson's chi-square with 7 degrees of freedom or fewer: 40 has a p-value below 2e-6."""
    possible = probability > 0
    assert counts[~possible].sum() == 0
    expected = DRAWS * probability[possible]
    assert (np.square(counts[possible] - expected) / expected).sum() < 40


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("by_seed", [False, True])
def test_the_distribution_is_softmax(temperature: float, by_seed: bool) -> None:
    counts = frequencies(Sampling(temperature=temperature, seed=3), by_seed)
    assert_distribution(counts, softmax(LOGITS / temperature))


def test_top_k_keeps_the_k_likeliest() -> None:
    kept = np.full(8, -np.inf)
    kept[[0, 5, 1]] = LOGITS[[0, 5, 1]]  # 1 and 6 are equal: the lower id is kept
    assert_distribution(frequencies(Sampling(temperature=1.0, top_k=3)), softmax(kept))


def test_of_equals_the_lowest_ids_are_kept() -> None:
    """A rule, so that another runtime can keep the same ones."""
    level = np.repeat(np.array([0.0, 1.0, 0.0], np.float32), 40)
    for k, ids in ((5, range(40, 45)), (45, [*range(40, 80), *range(5)])):
        drawn = {sample(level, position, Sampling(temperature=9.0, top_k=k)) for position in range(2000)}
        assert drawn == set(ids)


def test_top_p_keeps_the_least_set_that_reaches_p() -> None:
    order = np.argsort(-LOGITS, kind="stable")
    reached = np.cumsum(softmax(LOGITS)[order])
    assert reached[1] < 0.7 < reached[2]
    kept = np.full(8, -np.inf)
    kept[order[:3]] = LOGITS[order[:3]]
    assert_distribution(frequencies(Sampling(temperature=1.0, top_p=0.7)), softmax(kept))


def test_top_p_after_top_k() -> None:
    """top-p counts probability among what top-k left."""
    order = np.argsort(-LOGITS, kind="stable")[:4]
    reached = np.cumsum(softmax(LOGITS[order]))
    assert reached[0] < 0.6 < reached[1]
    kept = np.full(8, -np.inf)
    kept[order[:2]] = LOGITS[order[:2]]
    assert_distribution(frequencies(Sampling(temperature=1.0, top_k=4, top_p=0.6)), softmax(kept))


def test_a_draw_depends_on_logits_seed_and_position_alone() -> None:
    how = Sampling(temperature=1.0, seed=11)
    drawn = [sample(LOGITS, position, how) for position in range(200)]
    assert drawn == [sample(LOGITS.copy(), position, how) for position in range(200)]
    for other in (Sampling(temperature=1.0, seed=12), Sampling(temperature=1.0, seed=11 + 2**32)):
        assert drawn != [sample(LOGITS, position, other) for position in range(200)]
    assert drawn != [sample(LOGITS, position + 1, how) for position in range(200)]


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50),
    position=st.integers(0, 1 << 22), seed=st.integers(-(2**70), 2**70),
    temperature=st.floats(0.01, 100), top_k=st.integers(0, 60), top_p=st.floats(0.001, 1),
)  # fmt: skip
def test_any_draw_is_among_what_the_filters_leave(
    logits: list[float], position: int, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    array = np.array(logits, np.float32)
    token = sample(array, position, Sampling(temperature, top_k, top_p, seed))
    assert 0 <= token < len(array)
    better = (array > array[token]).sum()
    assert better < (top_k or len(array))
    probability = softmax(array.astype(np.float64) / temperature)
    assert top_p == 1 or probability[array > array[token]].sum() < top_p + 1e-9


def test_a_little_temperature_is_nearly_greedy() -> None:
    assert {sample(LOGITS, position, Sampling(temperature=1e-3)) for position in range(500)} == {0}
    assert {sample(LOGITS, position, Sampling(temperature=9.0, top_k=1)) for position in range(500)} == {0}
    assert {sample(LOGITS, position, Sampling(temperature=9.0, top_p=1e-9)) for position in range(500)} == {0}


@pytest.mark.parametrize(
    ("seed", "position", "ids", "expected"),
    [
        (0, 0, [0, 1, 2], [-0.7143951177675684, 0.04745063469154376, -0.8685611499489819]),
        (1, 0, [0, 1, 49151], [2.1004187723611802, 0.5754537041381921, 0.17552001847215049]),
        (12345, 2047, [7, 128000, 151935], [-0.7535481238745674, -0.8190247843919506, -0.7479584678021373]),
        (-1, 3, [5], [0.40839076030139665]),
        (2**63 + 9, 1 << 21, [1 << 21], [0.24012747833937156]),
    ],
)
def test_the_noise_is_what_it_always_was(seed: int, position: int, ids: list[int], expected: list[float]) -> None:
    """Golden values: the C++ runtime computes the same, and old seeds keep their texts."""
    np.testing.assert_allclose(gumbel_noise(seed, position, np.array(ids)), expected, rtol=1e-12)


def test_noise_is_asked_for_in_any_order() -> None:
    ids = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(gumbel_noise(4, 9, np.arange(1000))[ids], gumbel_noise(4, 9, ids))


def test_noise_is_gumbel() -> None:
    """Mean and variance of a million values; neighbours in id and in position do not correlate."""
    noise = np.stack([gumbel_noise(7, position, np.arange(1000)) for position in range(1000)])
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.006)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.005
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.005


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": -1}, "top_k -1 is negative"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": float("nan")}, "top_p nan"),
    ],
)
def test_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**fields)


def test_greedy_is_temperature_zero() -> None:
    assert Sampling().greedy
    assert not Sampling(temperature=1e-9).greedy
