"""The parts of verification by themselves: comparison, decisions, prompts, pass widths, ties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.bundle.write import write_overlay
from eecompile.runtime import Bundle
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.gates import ExitGates
from eecompile.verify.compare import Comparator, find_comparator, measure_with_numpy, measure_with_polygraphy
from eecompile.verify.criteria import criteria_of, fires
from eecompile.verify.decisions import check_flips
from eecompile.verify.exact import LEAST_WALKS, check_exact
from eecompile.verify.prompts import prompt_ids
from eecompile.verify.report import Check, VerifyReport
from eecompile.verify.rows import Walker
from eecompile.verify.tolerances import Band
from eecompile.verify.verify import verify_bundle

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((6, 8)).astype(np.float32)
BOUNDS: Any = {"largest": 1e-3, "mean": 1e-3}

# -- comparison ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["largest", "mean"])
@pytest.mark.parametrize("spoiled", [None, np.nan, np.inf, -np.inf])
def test_polygraphy_and_numpy_say_the_same(statistic: str, spoiled: float | None) -> None:
    pytest.importorskip("polygraphy")
    actual = ROWS + RNG.standard_normal(ROWS.shape).astype(np.float32) * np.float32(1e-3)
    if spoiled is not None:
        actual[2, 3] = spoiled
    difference = np.abs(actual - ROWS)
    middle = float(difference.max() if statistic == "largest" else difference.mean())
    for bound in (1e-6, middle * 0.99, middle * 1.01, 1.0) if spoiled is None else (1.0, 1e9):
        ours = measure_with_numpy(actual, ROWS, statistic, bound)
        with np.errstate(invalid="ignore"):
            theirs = measure_with_polygraphy(actual, ROWS, statistic, bound)
        assert theirs[0] == pytest.approx(ours[0], rel=1e-5, nan_ok=True)
        assert theirs[1] == ours[1] == (spoiled is None and middle <= bound)


@pytest.mark.parametrize("measure", [measure_with_numpy, measure_with_polygraphy])
def test_rows_are_measured_by_their_own_size(measure: Any) -> None:
    """An error of a thousandth counts the same in a row of thousands and in one of thousandths."""
    pytest.importorskip("polygraphy")
    size = np.array([[1e4], [1.0], [1e-4], [1.0], [1.0], [1.0]], np.float32)
    actual = ROWS.copy()
    actual[:, 0] += 2e-3 * np.abs(ROWS).max(axis=1)
    same = Comparator("", measure)(actual, ROWS, BOUNDS)
    scaled = Comparator("", measure)(actual * size, ROWS * size, BOUNDS)
    for statistic, (figure, holds) in same.items():
        assert scaled[statistic][0] == pytest.approx(figure, rel=1e-4)
        assert scaled[statistic][1] == holds
    assert same["largest"][0] == pytest.approx(2e-3, rel=1e-3)
    assert not same["largest"][1]
    assert same["mean"][1]


def test_rows_of_zeros_compare() -> None:
    zeros = np.zeros((2, 4), np.float32)
    compare = find_comparator()
    assert compare(zeros, zeros, BOUNDS)["largest"] == (0.0, True)
    assert not compare(zeros + 1, zeros, BOUNDS)["mean"][1]


def test_report_keeps_its_order_and_fails_with_any_check() -> None:
    good, bad = Check("a", True, {"n": 1, "x": 0.5}, {"x": "<= 1"}, "why"), Check("b", False)
    report = VerifyReport("d", "fp32", ("recorded",), "numpy", (good, bad))
    assert not report.passed
    assert VerifyReport("d", "fp32", (), "numpy", (good,)).passed
    assert good.detail == "n 1, x 0.5 <= 1; why"
    assert bad.detail == ""
    assert [check["name"] for check in report.to_dict()["checks"]] == ["a", "b"]


# -- decisions -------------------------------------------------------------------------------------------------


def test_criteria_by_hand() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]])
    found = criteria_of(np.log(probabilities).astype(np.float32) + np.float32(3))
    assert found["max_prob"] == pytest.approx([0.5, 0.9], abs=1e-6)
    assert found["margin"] == pytest.approx([0.25, 0.85], abs=1e-6)
    assert found["entropy"] == pytest.approx(-(probabilities * np.log(probabilities)).sum(axis=1), abs=1e-6)


def test_gates_fire_strictly_and_never_on_nan() -> None:
    value = np.array([0.4, 0.5, 0.6, 1.5, np.nan])
    assert fires("max_prob", value, 0.5).tolist() == [False, False, True, True, False]
    assert fires("learned", value, 0.5).tolist() == [False, False, True, False, False]
    assert fires("entropy", value, 0.5).tolist() == [True, False, False, False, False]


def _flips(actual: list[float], expected: list[float], band: Band | None, gate: Any = "max_prob") -> Check:
    units = {"gate_units": 1} if gate == "learned" else {}
    info = ExitInfo(layer=2, adapter="norm", gates=[gate], **units)
    policy = ExitPolicy(layer=2, confident=None, draft={gate: 0.5})
    values = ({gate: np.array(v)} for v in (actual, expected))
    return check_flips("x", info, policy, *values, band)


def test_flips_within_the_band_pass_and_are_counted() -> None:
    band = Band(0.01, 0.1)
    close = _flips([0.499, 0.9, 0.1], [0.501, 0.9, 0.1], band)
    assert close.passed
    assert close.name == "x decisions exit_2"
    assert close.figures["flips"] >= 1
    assert close.figures["max_prob_off"] == pytest.approx(0.001)
    far = _flips([0.45, 0.9, 0.1], [0.55, 0.9, 0.1], band)
    assert not far.passed
    assert far.tolerance == {"max_prob_off": "<= 0.01"}
    assert _flips([0.45, 0.9, 0.1], [0.55, 0.9, 0.1], None).passed
    assert not _flips([np.nan, 0.9, 0.1], [0.55, 0.9, 0.1], None).passed


def test_entropy_has_a_band_of_its_own_and_fires_below() -> None:
    assert _flips([0.45, 0.9, 0.1], [0.55, 0.9, 0.1], Band(0.01, 0.1), "entropy").passed
    assert _flips([0.45, 0.9, 0.1], [0.55, 0.9, 0.1], Band(0.01, 0.1), "entropy").figures["flips"] >= 1
    assert not _flips([0.45, 0.9, 0.1], [0.55, 0.9, 0.1], Band(0.1, 0.01), "entropy").passed
    assert not _flips([1.5, 0.4, 0.1], [0.9, 0.4, 0.1], Band(0.1, 0.1), "learned").passed


def test_a_gate_that_decides_nothing_has_no_flips() -> None:
    info = ExitInfo(layer=1, adapter="norm", gates=["fixed"])
    found = check_flips("x", info, ExitPolicy(layer=1, confident=None, draft={"fixed": 0}), {}, {}, Band(0, 0))
    assert found.passed
    assert found.figures == {"decisions": 0, "flips": 0}


# -- exact mode ------------------------------------------------------------------------------------------------

MIXED = "exact greedy, mixed drafts, cap 8"


def _exact(bundle: Bundle, noise: float, tokens: int = 8) -> dict[str, Check]:
    walker = Walker(bundle)
    asked = len(bundle.manifest.exits)
    values = [{name: np.array([0.1, 0.2]) for name in ("learned", *c.HEAD_CRITERIA)}] * asked
    checks = check_exact(bundle, walker, [[1, 2, 3]], tokens, values, noise, lambda stage: None)
    return {check.name: check for check in checks}


def _accept_all(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = Decoder._verify

    def gullible(self: Decoder, one: Continuation, decided: Any, at: int, finite: list[bool]) -> None:
        drafts, one.drafts = one.drafts, []
        last = min(len(drafts), len(finite) - 1) if drafts else 0
        verify(self, one, decided, at + last, finite[last:])
        one.certain = [*drafts, *one.certain[-1:]]

    monkeypatch.setattr(Decoder, "_verify", gullible)


def test_a_difference_within_the_rounding_noise_is_a_tie(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(pristine)
    assert all(check.passed and not check.figures["ties"] for check in _exact(opened, 0.0).values())
    _accept_all(monkeypatch)
    strict, lax = _exact(opened, 1e-3), _exact(opened, 1e9)
    name = "exact greedy, forced drafts, cap 8"
    assert strict[name].figures["mismatches"] == 1
    assert lax[name].passed
    assert lax[name].figures["ties"] == 1
    sampled = "exact sampled, mixed drafts, cap 8"
    assert strict[sampled].figures["mismatches"] + lax[sampled].figures["ties"] == 2


def test_forced_drafts_that_are_never_made_fail(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExitGates, "ask", lambda self, exit_, rows, states, slots: [None] * len(states))
    checks = _exact(Bundle.open(pristine), 0.0)
    assert checks["exact greedy, policy drafts"].passed
    forced = checks["exact greedy, forced drafts, cap 1"]
    assert not forced.passed
    assert (forced.figures["mismatches"], forced.figures["drafted"]) == (0, 0)
    assert "no token was a draft" in forced.detail
    mixed = {tokens: _exact(Bundle.open(pristine), 0.0, tokens)[MIXED] for tokens in (LEAST_WALKS, LEAST_WALKS + 1)}
    assert {tokens: check.passed for tokens, check in mixed.items()} == {LEAST_WALKS: True, LEAST_WALKS + 1: False}


def test_two_tokens_are_enough_for_forced_drafts(pristine: Path) -> None:
    checks = _exact(Bundle.open(pristine), 0.0, 2)
    assert all(check.passed for check in checks.values())
    assert checks["exact greedy, forced drafts, cap 1"].figures["drafted"] == 1
    assert not any("drafted" in check.tolerance for check in _exact(Bundle.open(pristine), 0.0, 1).values())


def test_a_budget_may_end_exact_mode_sooner(bundle: Path) -> None:
    policy = Bundle.open(bundle).files.policy.model_dump(exclude={"kind", "core", "digest"})
    write_overlay(bundle, c.POLICY, {**policy, "budget": 60})
    assert all(check.passed for check in _exact(Bundle.open(bundle), 0.0).values())


# -- prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "tokens", "budget"), [(256, 32, None), (64, 60, None), (8, 7, None), (256, 4, 40)])
def test_built_in_prompts_fit(context: int, tokens: int, budget: int | None, tmp_path: Path) -> None:
    out = tiny.bundle_at(tmp_path / "bundle", tiny.checkpoint(tmp_path / "model"), [2], context=context)
    policy = Bundle.open(out).files.policy.model_dump(exclude={"kind", "core", "digest"})
    write_overlay(out, c.POLICY, {**policy, "budget": budget})
    opened = Bundle.open(out)
    session = opened.session()
    for ids in prompt_ids(opened, None, tokens):
        assert 1 <= len(ids) <= context - tokens
        assert len(list(session.generate(ids, max_new_tokens=tokens))) <= tokens


# -- pass widths -----------------------------------------------------------------------------------------------


@given(length=st.integers(1, 400))
def test_both_walks_cover_every_token(pristine: Path, length: int) -> None:
    walker = Walker(Bundle.open(pristine, integrity="size"))
    for widths in (walker.prefill_widths(length), walker.decode_widths(length)):
        assert sum(widths) == length
        assert all(1 <= width <= walker.rows for width in widths)


def test_a_decode_walk_crosses_a_full_pass_one_token_at_a_time(pristine: Path) -> None:
    walker = Walker(Bundle.open(pristine, integrity="size"))
    widths = walker.decode_widths(300)
    starts = np.cumsum([0, *widths])[:-1]
    assert all(width == 1 for start, width in zip(starts, widths, strict=True) if 124 <= start < 132)
    assert walker.manifest.pending_cap + 1 in widths


@pytest.mark.parametrize("cache", ["fp16", "int8"])
def test_smaller_caches_are_judged_by_their_own_type(tmp_path: Path, cache: str) -> None:
    """Float32 weights over such caches are as far from the reference as the type allows, not as float32 would be."""
    source = tiny.checkpoint(tmp_path / "checkpoint")
    report = verify_bundle(tiny.bundle_at(tmp_path / "bundle", source, [2], cache=cache), tokens=4)
    assert report.passed, [check.name for check in report.checks if not check.passed]
    [logits] = [check for check in report.checks if check.name == "recorded logits"]
    assert float(logits.figures["mean"]) > 1e-5
