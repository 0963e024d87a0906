"""Measures on paper, and what the replay predicts where the answer is known."""

import numpy as np
import pytest

pytest.importorskip("torch")

from eecompile_training.analyze import measures as m
from eecompile_training.analyze.costs import Prices
from eecompile_training.analyze.predict import oracle_speedup, predict, verdict
from eecompile_training.analyze.probes import Probe
from eecompile_training.analyze.table import Said, Table
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.torch
FREE = Prices(lambda rows: 1.0, lambda rows: 0.0, lambda count, rows: 0.0, "layers alone, rows for nothing")
DEAR = Prices(lambda rows: 1.0, lambda rows: 9.0, lambda count, rows: 0.0, "a head of nine layers")


def said(agrees: np.ndarray, max_prob: np.ndarray) -> Said:
    nothing = np.zeros(len(agrees), np.float32)
    return Said(agrees.astype(bool), max_prob.astype(np.float32), nothing, nothing, nothing)


def table(agrees: np.ndarray, max_prob: np.ndarray) -> Table:
    """Four documents of one probe."""
    documents = np.arange(len(agrees)) * 4 // len(agrees)
    return Table(documents, np.zeros(len(agrees), np.float32), [said(agrees, max_prob)])


def probe(layer: int) -> Probe:
    return Probe("lens", layer, lambda x: x, lambda x: x)


def test_calibration_error_of_known_cases() -> None:
    right = np.array([True] * 8 + [False] * 2)
    assert m.calibration_error(np.full(10, 0.8), right) == pytest.approx(0.0, abs=1e-9)
    assert m.calibration_error(np.full(10, 0.5), right) == pytest.approx(0.3)
    assert m.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    apart = m.calibration_error(np.array([0.31, 0.61]), np.array([True, False]))
    assert apart == pytest.approx((0.69 + 0.61) / 2), "two bins do not make up for each other"


def test_affinity_of_known_cases() -> None:
    assert m.affinity([1.0] * 4, [1, 2, 3, 4], 4, alpha=1.0) == 1.0
    assert m.affinity([0.3] * 4, [1, 2, 3, 4], 4, alpha=0.0) == pytest.approx((1 + 0.75 + 0.5 + 0.25) / 4)
    assert m.affinity([0.25, -0.5], [1, 2], 2) == pytest.approx(0.25)


def test_an_oracle_stops_at_the_first_agreement_and_gives_up_the_deepest() -> None:
    agrees = [np.array([1, 0, 0, 0], bool), np.array([0, 1, 0, 0], bool)]
    first = m.first_agreement(agrees, [1, 3], 4)
    assert first.tolist() == [1, 3, 4, 4]
    assert m.oracle_skip(first, 1, 4, 0.0) == pytest.approx(1 - 12 / 16)
    assert m.oracle_skip(first, 1, 4, 0.25) == pytest.approx(1 - 9 / 16)
    assert m.increments([5.0, 3.0, 1.0]) == [2.0, 2.0, 1.0]


def test_an_exit_that_is_always_right_is_worth_its_layers() -> None:
    """Confident mode then runs 2 of 8 layers a token and catches eight tokens up in one pass of the others."""
    found = predict(table(np.ones(400), np.ones(400)), [probe(2)], 8, FREE)
    assert [p.agreement for p in found] == [1.0] * 4
    assert found[0].speedup == pytest.approx(8 / (2 + 6 / 9), rel=0.05)
    assert found[3].mode == "exact"
    assert found[3].speedup == pytest.approx(found[0].speedup, rel=0.1)
    assert "pays" in verdict(found, 3.0)


def test_a_threshold_keeps_to_its_level_on_tokens_that_it_was_not_chosen_on() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(8000)
    found = predict(
        table(rng.random(8000) < sure, sure),
        [probe(2)],
        8,
        FREE,
    )
    for p in found[:3]:
        assert p.level - 0.02 <= p.agreement
        assert p.exit_rate > 0
    rates = [p.exit_rate for p in found[:3]]
    assert rates == sorted(rates, reverse=True)
    assert found[0].agreement < 0.93, "bold enough to use what it is given"


def test_where_the_head_is_dear_no_exit_is_better_than_none() -> None:
    agrees = np.tile([True, False], 200)
    found = predict(table(agrees, np.full(400, 0.5)), [probe(7)], 8, DEAR)
    assert [(p.speedup, p.layer) for p in found] == [(1.0, None)] * 4
    oracle = oracle_speedup(table(agrees, np.full(400, 0.5)), [probe(7)], 8, DEAR)
    assert "not even" in verdict(found, oracle[0])


def test_a_gate_that_knows_gains_where_confidence_tells_nothing() -> None:
    agrees = np.random.default_rng(1).random(400) < 0.5
    shown = table(agrees, np.full(400, 0.5))
    speedup, layer = oracle_speedup(shown, [probe(2)], 8, FREE)
    assert layer == 2
    assert speedup > 1.3
    assert "always knew" in verdict(predict(shown, [probe(2)], 8, DEAR), speedup)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=8, max_size=60))
def test_no_prediction_is_slower_than_the_choice_of_no_exit(tokens: list[tuple[bool, float]]) -> None:
    agrees, sure = (np.array(column) for column in zip(*tokens, strict=True))
    for p in predict(table(agrees, sure), [probe(2)], 4, FREE):
        assert (p.layer is None) == (p.speedup == 1.0 and p.exit_rate == 0.0) or p.layer == 2
        assert 0 <= p.agreement <= 1
