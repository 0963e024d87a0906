"""Policies change within what was calibrated, and the message says what that is."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import CALIBRATION, SAFE, calibration_fields, edit_document, policy_fields, refuse

from eecompile import contract as c
from eecompile.bundle.policy import adopt_calibration, change_policy, permitted_thresholds
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import write_overlay
from eecompile.errors import IntegrityError, UsageError


def test_a_safer_threshold(bundle: Path) -> None:
    policy = change_policy(bundle, thresholds={1: {"max_prob": 0.95}}, minimum_depth=1, budget=50)
    assert policy.exits[0].confident == {"learned": 0.9, "max_prob": 0.95}
    assert (policy.minimum_depth, policy.budget) == (1, 50)
    assert read_bundle(bundle).policy == policy
    assert change_policy(bundle, thresholds={}) == policy
    assert change_policy(bundle, thresholds={}, budget=None).budget is None


def test_closing_and_opening(bundle: Path) -> None:
    assert change_policy(bundle, thresholds={1: None}).exits[0].confident is None
    assert change_policy(bundle, thresholds={1: {"learned": 0.95}}).exits[0].confident == {**SAFE, "learned": 0.95}
    assert change_policy(bundle, thresholds={1: None}, mode="draft").exits[0].draft is None


def test_drafts_are_free(bundle: Path) -> None:
    policy = change_policy(bundle, thresholds={1: {"learned": 0.0}}, mode="draft")
    assert policy.exits[0].draft == {"learned": 0.0, "max_prob": 0.0}
    (bundle / CALIBRATION).unlink()
    edit_document(bundle / c.POLICY, lambda p: p["exits"][0].update(confident=None, draft=None))
    with pytest.raises(UsageError, match="exit 1 is closed and has no calibrated max_prob"):
        change_policy(bundle, thresholds={1: {"learned": 0.1}}, mode="draft")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": {1: {"max_prob": 0.5}}}, r"max_prob 0.5 at exit 1 is outside \[0.8, 1\]"),
        ({"thresholds": {1: {"max_prob": 1.5}}}, r"max_prob 1.5 is outside \[0, 1\]"),
        ({"thresholds": {1: {"max_prob": math.nan}}}, "max_prob: Input should be a finite number"),
        ({"thresholds": {1: {"entropy": 0.5}}}, "exit 1 has no gate entropy; its gates are"),
        ({"thresholds": {1: {"learned": 2}}, "mode": "draft"}, r"draft: learned 2 is outside \[0, 1\]"),
        ({"thresholds": {3: {"max_prob": 0.9}}}, "there is no exit after layer 3"),
        ({"thresholds": {}, "minimum_depth": 3}, "a minimum depth of 3 where the model has 2 layers"),
        ({"thresholds": {}, "minimum_depth": -1}, "minimum_depth: Input should be greater"),
        ({"thresholds": {}, "budget": 0}, "budget: Input should be greater"),
    ],
)
def test_changes_that_are_not_permitted(bundle: Path, options: dict[str, Any], message: str) -> None:
    before = (bundle / c.POLICY).read_bytes()
    with pytest.raises(UsageError, match=message) as caught:
        change_policy(bundle, **options)
    assert caught.value.mend
    assert (bundle / c.POLICY).read_bytes() == before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(learned=st.floats(-0.5, 1.5), max_prob=st.floats(-0.5, 1.5))
def test_what_is_permitted_is_what_is_read(bundle: Path, learned: float, max_prob: float) -> None:
    permitted = 0.9 <= learned <= 1 and 0.8 <= max_prob <= 1
    try:
        change_policy(bundle, thresholds={1: {"learned": learned, "max_prob": max_prob}})
    except UsageError:
        assert not permitted
    else:
        assert permitted
    read_bundle(bundle)


def test_what_is_permitted_is_told(bundle: Path) -> None:
    assert permitted_thresholds(read_bundle(bundle)) == [{"learned": (0.9, 1.0), "max_prob": (0.8, 1.0)}]
    change_policy(bundle, thresholds={1: None})
    (bundle / CALIBRATION).unlink()
    assert permitted_thresholds(read_bundle(bundle)) == [None]
    with pytest.raises(UsageError, match="confident thresholds without a calibration"):
        change_policy(bundle, thresholds={1: SAFE})


def test_the_calibration_that_carries_the_policy_tells(bundle: Path) -> None:
    bold = [{"learned": 0.1, "max_prob": 0.1}]
    point = {**calibration_fields()["path"][1], "thresholds": bold}
    write_overlay(bundle, "overlays/calibration-z.json", calibration_fields(path=[point], chosen=0))
    assert permitted_thresholds(read_bundle(bundle)) == [{"learned": (0.9, 1.0), "max_prob": (0.8, 1.0)}]
    change_policy(bundle, thresholds={1: {"learned": 0.5}})
    assert permitted_thresholds(read_bundle(bundle)) == [{"learned": (0.1, 1.0), "max_prob": (0.1, 1.0)}]


def test_a_signed_policy(signed: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="the bundle is signed") as caught:
        change_policy(signed, thresholds={1: {"max_prob": 0.9}})
    assert "--key" in caught.value.mend
    with pytest.raises(IntegrityError, match="signed by the key"):
        change_policy(signed, thresholds={1: {"max_prob": 0.9}}, key=keys[1])
    with pytest.raises(UsageError, match="not an Ed25519 private key"):
        change_policy(signed, thresholds={1: {"max_prob": 0.9}}, key=keys[0].with_name(keys[0].name + ".pub"))
    policy = change_policy(signed, thresholds={1: {"max_prob": 0.9}}, key=keys[0])
    assert read_bundle(signed, key=keys[0]).policy == policy


def test_a_key_for_a_bundle_without_signatures(bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="the bundle is not signed"):
        change_policy(bundle, thresholds={}, key=keys[0])


def test_adopting_a_stricter_calibration(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {"learned": 0.99, "max_prob": 0.99}
    point = {**calibration_fields()["path"][1], "thresholds": [strict]}
    calibration, policy = calibration_fields(path=[point], chosen=0), policy_fields(confident=strict)
    with pytest.raises(UsageError, match="bolder than calibrated"):
        write_overlay(bundle, CALIBRATION, calibration)
    assert adopt_calibration(bundle, CALIBRATION, calibration, policy).exits[0].confident == strict
    assert read_bundle(bundle).policy.exits[0].confident == strict


def test_an_edited_threshold_cannot_be_changed_on(bundle: Path) -> None:
    edit_document(bundle / c.POLICY, lambda p: p["exits"][0]["confident"].update(max_prob=0.1))
    refuse(bundle, "bolder than calibrated")
    with pytest.raises(IntegrityError, match="bolder than calibrated"):
        change_policy(bundle, thresholds={})
