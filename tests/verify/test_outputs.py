"""Outputs of two runs held against each other: tolerances, and decisions that differ."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.verify.expected import decided
from eecompile.verify.outputs import OutputRules, device_graph, exit_graph, float32_model, same_weights
from eecompile.verify.tolerances import BANDS, Band

RULES = same_weights("fp32")
RNG = np.random.default_rng(4)
HIDDEN = RNG.standard_normal((2, 5, 8)).astype(np.float32)
THRESHOLDS = np.tile(np.array(c.NO_BOUND, np.float32), (6, 1))


def judged(name: str, first: Any, second: Any, rules: OutputRules = RULES, **others: Any) -> Any:
    """What the rules say of one output, given others that are the same in both runs."""
    return rules.judge({name: np.asarray(first), **others}, {name: np.asarray(second), **others})[name]


def values(max_prob: float, margin: float, entropy: float, flag: bool) -> dict[str, Any]:
    """One row's decision."""
    found: dict[str, Any] = {c.MAX_PROB: max_prob, c.MARGIN: margin, c.ENTROPY: entropy, c.EXIT_FLAG: flag}
    return {name: np.array([value]) for name, value in found.items()}


def test_only_what_both_have_is_compared() -> None:
    assert set(RULES.judge({"a": HIDDEN, "b": HIDDEN}, {"b": HIDDEN, "c": HIDDEN})) == {"b"}
    assert RULES.judge({"a": HIDDEN}, {}) == {}


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (5e-5, True), (2e-4, False), (np.nan, False)])
def test_rows_are_held_to_their_own_size(error: float, passes: bool) -> None:
    changed = HIDDEN.copy()
    changed[1, 2, 3] += error * np.abs(HIDDEN[1, 2]).max()
    assert judged("hidden_out", changed, HIDDEN, float32_model("fp32")).passed is passes
    changed[0], expected = changed[0] * 1e6, HIDDEN.copy()  # a row that is large does not hide a small one's error
    expected[0] *= 1e6
    assert judged("hidden_out", changed, expected, float32_model("fp32")).passed is passes


def test_shapes_have_to_agree() -> None:
    said = judged("hidden_out", HIDDEN[:1], HIDDEN)
    assert not said.passed
    assert said.said == "shapes [1, 5, 8] and [2, 5, 8]"


def test_numbers_that_count_have_to_be_equal() -> None:
    assert judged("key_positions_out", [[1, 2]], [[1, 2]]).passed
    assert not judged("key_positions_out", [[1, 3]], [[1, 2]]).passed


def test_a_narrow_cache_may_round_apart_by_one_step() -> None:
    levels = np.array([[127, -90, 3]], np.int8)
    assert judged("key_cache_0_out", levels + np.int8([0, 1, 0]), levels, same_weights("fp16")).passed is True
    assert judged("key_cache_0_out", levels + np.int8([0, 5, 0]), levels, same_weights("fp16")).passed is False
    half = np.array([[1.0, 0.5]], np.float16)
    assert judged("key_cache_0_out", half + np.float16([0, 2**-11]), half, same_weights("fp16")).passed is True
    assert judged("key_cache_0_out", half + np.float16([0, 2**-8]), half, same_weights("fp16")).passed is False


def test_no_rows_are_right() -> None:
    assert judged("frozen_out", HIDDEN[:, :0], HIDDEN[:, :0]).passed


def test_a_flip_near_a_threshold_is_named_and_let_pass() -> None:
    said = RULES.judge(values(0.70002, 0.5, 1.0, True), values(0.69998, 0.5, 1.0, False))[c.EXIT_FLAG]
    assert said.passed
    assert said.said == "1 of 1 differ, 1 of them near-ties"
    assert said.flips[0].startswith("row 0 exits, and goes on in the second: max_prob 0.70002 and 0.69998")
    assert said.flips[0].endswith("(near-tie)")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(values(0.8, 0.5, 1.0, True), values(0.7, 0.5, 1.0, False), id="far"),
        pytest.param(values(0.7, 0.5, 1.0, True), values(0.7, 0.5, 1.0, False), id="equal"),
        pytest.param(values(np.nan, 0.5, 1.0, True), values(0.7, 0.5, 1.0, False), id="nan"),
    ],
)
def test_other_flips_are_faults(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Too far apart; or with no threshold between them, so that one of the comparisons is wrong."""
    said = RULES.judge(first, second)[c.EXIT_FLAG]
    assert not said.passed
    assert said.flips[0].endswith("(no near-tie)")


def test_flags_without_the_values_that_decide_them_have_to_be_equal() -> None:
    assert not judged(c.EXIT_FLAG, [True], [False]).passed
    assert judged(c.EXIT_FLAG, [True], [True]).passed


def test_tokens_may_differ_where_neither_is_preferred_by_much() -> None:
    assert judged(c.TOKEN, [3], [5], margin=np.array([1e-5])).passed
    assert not judged(c.TOKEN, [3], [5], margin=np.array([0.3])).passed
    assert not judged(c.TOKEN, [3], [5]).passed
    assert judged(c.TOKEN, [3], [5], same_weights("int4"), margin=np.array([0.3])).passed


def test_a_cheap_gate_s_decisions_at_its_thresholds() -> None:
    rules = exit_graph({c.CONFIDENCE: [0.5, 0.9]})
    said = judged(c.CONFIDENCE, [0.500001, 0.2, np.nan], [0.499999, 0.2, np.nan], rules)
    assert said.passed
    assert len(said.flips) == 1
    assert said.flips[0].startswith("row 0 stops, not so in the second: confidence 0.500001 and 0.499999")
    assert not judged(c.CONFIDENCE, [0.6], [0.4], rules).passed
    assert not judged(c.CONFIDENCE, [np.nan], [0.4], rules).passed


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_errors_within_the_band_never_make_a_fault(seed: int, quantile: float) -> None:
    """Two runs whose logits differ a little, at thresholds between or beside their values: flips are near-ties, and a
    flag that is turned over where the values are equal is none."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((6, 12)).astype(np.float32)
    moved = logits + rng.uniform(-1, 1, logits.shape).astype(np.float32) * 1e-3
    bounds = THRESHOLDS.copy()
    for column, name in enumerate(c.HEAD_CRITERIA):
        bounds[column::3, column] = np.quantile(decided(logits, THRESHOLDS)[name], quantile)
    rules = OutputRules({"largest": 1e-2}, BANDS["fp16"])
    first, second = ({c.LOGITS: x, **decided(x, bounds)} for x in (logits, moved))
    assert all(said.passed for said in rules.judge(first, second).values())
    forged = {**first, c.EXIT_FLAG: ~first[c.EXIT_FLAG]}
    said = rules.judge(forged, first)[c.EXIT_FLAG]
    assert not said.passed
    assert len(said.flips) == 6


def test_decisions_in_float64() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], np.float32))
    strict = np.array([[0.5, 0.4, 1.0], [0.5, -1.0, np.inf]], np.float32)
    found = decided(logits, strict)
    np.testing.assert_allclose(found[c.MAX_PROB], [0.7, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found[c.MARGIN], [0.5, 0.05], rtol=1e-5)
    assert found[c.TOKEN].tolist() == [0, 0]
    assert found[c.EXIT_FLAG].tolist() == [True, False]


def test_rules_say_what_they_were_made_of() -> None:
    """A script is written of them: their text is Python that makes the same rules."""
    for rules in (same_weights("int4"), float32_model("fp16"), exit_graph({c.CONFIDENCE: [0.25]})):
        assert eval(repr(rules), {"OutputRules": OutputRules, "Band": Band}) == rules


def test_a_device_s_rules_go_by_what_it_computes_in() -> None:
    """The coarser it computes, or the coarser the weights are that both round, the further rows may be apart."""
    means = [device_graph("fp16", compute).bounds["mean"] for compute in ("float32", "float16", "bfloat16")]
    assert means == sorted(means)
    assert device_graph("int4", "float16") == same_weights("int4")
    assert "largest" not in device_graph("fp16", "bfloat16").bounds
