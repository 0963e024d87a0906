"""The rates of the machine at hand: what two chains of products say of bytes and of products."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.bench.machine import _Reading, _solve
from eecompile.bench.rates import Rates
from eecompile.bench.work import Matrix, Work


def chain(count: int, nbytes: float, bandwidth: float, product: float) -> _Reading:
    return _Reading(count, nbytes, nbytes / bandwidth + count * product)


@given(st.floats(1e9, 1e11), st.floats(1e-7, 1e-4), st.integers(20, 400), st.integers(1, 8))
def test_what_chains_took_is_split_into_bytes_and_products(
    bandwidth: float, product: float, count: int, few: int
) -> None:
    """As long as the few wide matrices are mostly bytes."""
    wide = chain(few, 80e6, bandwidth, product)
    found = _solve(chain(count, 84e6, bandwidth, product), wide)
    if few * product <= wide.seconds / 2:
        assert found == (pytest.approx(bandwidth, rel=1e-6), pytest.approx(product, rel=1e-3))
    assert found[0] <= 2 * wide.bytes / wide.seconds * (1 + 1e-9)


def test_noise_gives_products_no_price_below_zero() -> None:
    bandwidth, product = _solve(_Reading(100, 8e7, 0.008), _Reading(4, 8e7, 0.010))
    assert (bandwidth, product) == (pytest.approx(16e7 / 0.018), 0.0)
    assert _solve(_Reading(4, 8e7, 0.008), _Reading(4, 8e7, 0.004))[1] == 0.0


def test_each_product_of_a_pass_is_paid_for() -> None:
    work = Work.of([Matrix.of(8, 8, "fp32")] * 7, layers=2)
    rates = Rates(bandwidth=1e9, flops=0, launch=0, kernel=0, overlaps=False, value=4, basis="paper", product=1e-3)
    plain = Rates(bandwidth=1e9, flops=0, launch=0, kernel=0, overlaps=False, value=4, basis="paper")
    assert rates.seconds(work, 1, 0) - plain.seconds(work, 1, 0) == pytest.approx(8e-3)
    assert [Work.of(found).matrices for found in ([], [Matrix.of(8, 8, "fp32")] * 3)] == [0, 1]
