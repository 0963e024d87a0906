"""Policies and calibrations that a runtime must not follow are refused."""

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import CALIBRATION, SAFE, VOCAB, calibration_fields, edit_document, policy_fields, refuse

from eecompile import contract as c
from eecompile.bundle.gates import decode_gate, encode_gate
from eecompile.bundle.manifest import Calibration, ExitPolicy, Manifest, Policy
from eecompile.bundle.ranges import calibrated_range, confident_fault, criterion_range, matching_calibrations
from eecompile.bundle.read import BundleFiles, read_bundle

NOT_FINITE = base64.b64encode(np.array([np.nan], "<f4").tobytes()).decode()
Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e: e.update(layer=2), r"exits at \[2\] where the bundle has \[1\]"),
        (lambda e: e["draft"].update(max_prob=1.5), r"exit 1, draft: max_prob 1.5 is outside \[0, 1\]"),
        (lambda e: e["draft"].update(learned=-0.1), r"exit 1, draft: learned -0.1 is outside"),
        (lambda e: e["draft"].pop("learned"), "draft: thresholds for .'max_prob'. where the gates are"),
        (lambda e: e["draft"].update(entropy=0.1), "draft: thresholds for .'entropy', 'learned', 'max_prob'."),
        (lambda e: e["confident"].update(max_prob=2), r"exit 1, confident: max_prob 2 is outside"),
        (lambda e: e.update(gate=None), "no gate weights where the bundle has that gate"),
        (lambda e: e["gate"].update(units=4), "a gate of 4 units where the bundle's has 3"),
        (lambda e: e["gate"].update(w1="AAAA"), r"gate weights: w1 has 3 bytes instead of 48 for \[4, 3\]"),
        (lambda e: e["gate"].update(b1="no base64!"), "gate weights: b1 is not base64"),
        (lambda e: e["gate"].update(b2=NOT_FINITE), "gate weights: b2 is not finite everywhere"),
        (lambda e: e["confident"].update(max_prob=0.79), r"max_prob 0.79 at exit 1 is outside \[0.8, 1\]"),
        (lambda e: e["confident"].update(learned=0.0), r"learned 0 at exit 1 is outside \[0.9, 1\]"),
    ],
)
def test_exits_that_are_refused(bundle: Path, edit: Edit, message: str) -> None:
    edit_document(bundle / c.POLICY, lambda p: edit(p["exits"][0]))
    refuse(bundle, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["exits"].clear(), r"exits at \[\] where the bundle has \[1\]"),
        (lambda p: p.update(minimum_depth=3), "a minimum depth of 3 where the model has 2 layers"),
        (lambda p: p.update(kv="propagate"), "the K/V rule propagate, for which the bundle has no graphs"),
        (lambda p: p.update(budget=0), "budget: Input should be greater"),
        (lambda p: p["exits"][0]["draft"].update(luck=0.5), "does not follow the schema: exits.0.draft"),
    ],
)
def test_policies_that_are_refused(bundle: Path, edit: Edit, message: str) -> None:
    edit_document(bundle / c.POLICY, edit)
    refuse(bundle, message)


def test_an_edited_threshold(bundle: Path) -> None:
    text = (bundle / c.POLICY).read_text()
    assert '"max_prob": 0.8' in text
    (bundle / c.POLICY).write_text(text.replace('"max_prob": 0.8', '"max_prob": 0.3'))
    refuse(bundle, "policy.json: changed by hand or damaged: it does not agree with its own digest")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(chosen=3), "point 3 is chosen of 3"),
        (lambda d: d.update(chosen=2), "the chosen point's p-value is above the error"),
        (lambda d: d["path"][0].update(thresholds=[]), "point 0 has 0 exits where the bundle has 1"),
        (lambda d: d["path"][2].update(thresholds=[{"learned": 0.5}]), "point 2, exit 1: thresholds for"),
        (lambda d: d["path"][1]["thresholds"][0].update(learned=7), r"point 1, exit 1: learned 7 is outside"),
        (lambda d: d.update(chosen=0), "exit 1 has no calibrated threshold"),
        (lambda d: d.update(chosen=None), "confident thresholds without a calibration"),
        (lambda d: d.update(precision="int8"), "confident thresholds without a calibration"),
        (lambda d: d.update(pending_cap=4), "confident thresholds without a calibration"),
        (lambda d: d.update(gates="b" * 64), "confident thresholds without a calibration"),
        (lambda d: d.update(kv="propagate"), "confident thresholds without a calibration"),
        (lambda d: d.update(cache="int8"), "confident thresholds without a calibration"),
        (lambda d: d.update(kv="copy"), "kv: Input should be 'catch_up', 'propagate', 'selected' or 'none'"),
    ],
)
def test_calibrations_that_do_not_carry_the_policy(bundle: Path, edit: Edit, message: str) -> None:
    edit_document(bundle / CALIBRATION, edit)
    refuse(bundle, message)


def test_no_calibration_at_all(bundle: Path) -> None:
    (bundle / CALIBRATION).unlink()
    refuse(bundle, "policy.json: confident thresholds without a calibration")


def test_other_gate_weights_void_the_calibration(bundle: Path) -> None:
    edit_document(bundle / c.POLICY, lambda p: p["exits"][0]["gate"].update(b2="AAAAAA=="))
    refuse(bundle, "policy.json: confident thresholds without a calibration")


def read_parts(pristine: Path) -> tuple[Manifest, Policy, list[Calibration]]:
    files: BundleFiles = read_bundle(pristine)
    return files.manifest, files.policy, list(files.calibrations)


def test_one_calibration_has_to_allow_all_exits(pristine: Path) -> None:
    manifest, policy, [calibration] = read_parts(pristine)
    strict = calibration.model_copy(update={"path": [calibration.path[0]], "chosen": 0})
    assert confident_fault(manifest, policy, [strict]) is not None
    assert confident_fault(manifest, policy, [strict, calibration]) is None
    assert matching_calibrations(manifest, policy, [calibration], "catch_up") == [calibration]
    assert matching_calibrations(manifest, policy, [calibration], "propagate") == []


@pytest.mark.parametrize("gates", [["fixed"], ["never"]])
def test_gates_without_a_measure_need_a_calibration_too(pristine: Path, gates: list[str]) -> None:
    manifest, policy, _ = read_parts(pristine)
    info = manifest.exits[0].model_copy(update={"gates": gates, "gate_units": 0})
    manifest = manifest.model_copy(update={"exits": [info]})
    closed = ExitPolicy(layer=1, confident=None, draft=None)
    opened = policy.model_copy(update={"exits": [closed.model_copy(update={"confident": {gates[0]: 0.0}})]})
    assert confident_fault(manifest, policy.model_copy(update={"exits": [closed]}), []) is None
    assert confident_fault(manifest, opened, []) is not None


@given(st.sampled_from(["learned", "max_prob", "margin", "entropy"]), st.floats(0, 1), st.floats(0, 1))
def test_bolder_means_that_more_rows_pass(criterion: Any, calibrated: float, value: float) -> None:
    low, high = calibrated_range(criterion, calibrated, VOCAB)
    bolder = value > calibrated if criterion == "entropy" else value < calibrated
    assert (low <= value <= high) == (not bolder)


def test_ranges() -> None:
    assert criterion_range("entropy", VOCAB) == (0.0, math.log(VOCAB))
    assert criterion_range("fixed", VOCAB) == (0.0, 0.0)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1 << 30))
def test_gate_weights_survive(hidden: int, units: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(hidden, units), (units,), (units, 1), (1,)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for array, decoded in zip(arrays, decode_gate(encode_gate(*arrays), hidden).values(), strict=True):
        np.testing.assert_array_equal(array, decoded)


def test_the_helpers_agree_with_the_files(pristine: Path) -> None:
    assert json.loads((pristine / CALIBRATION).read_text())["gates"] == calibration_fields()["gates"]
    assert policy_fields(confident=SAFE)["exits"][0]["confident"] == read_bundle(pristine).policy.exits[0].confident
