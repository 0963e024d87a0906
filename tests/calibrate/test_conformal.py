"""Conformal risk control from documents to a bundle: bolder than a test, held to its bound, and told apart in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from pydantic import ValidationError

from eecompile.bundle.ranges import calibration_fault, conformal_bound
from eecompile.calibrate.calibrate import apply_calibration, calibrate_file
from eecompile.cli import main
from eecompile.runtime import Bundle
from eecompile.schema import CalibrationResult

RISK, ERROR = 0.2, 0.05


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny bundle, and documents for it."""
    folder = tmp_path_factory.mktemp("conformal")
    bundle = tiny.bundle_at(folder / "bundle", tiny.checkpoint(folder / "checkpoint", gain=0.25), [1, 3])
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, (240, 16))
    (folder / "d.jsonl").write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in ids))
    return bundle, folder / "d.jsonl"


@pytest.fixture(scope="module")
def results(place: tuple[Path, Path]) -> dict[str, CalibrationResult]:
    opened = Bundle.open(place[0])
    return {m: calibrate_file(opened, place[1], risk=RISK, error=ERROR, method=m) for m in ("ltt", "crc")}


def test_its_point_keeps_to_the_bound_and_the_next_does_not(results: dict[str, CalibrationResult]) -> None:
    found, tested = results["crc"], results["ltt"]
    assert (found.method, found.error) == ("conformal-risk-control", None)
    assert found.chosen is not None
    bound, risks = conformal_bound(found.documents, RISK), [point.risk for point in found.path]
    assert risks == sorted(risks)
    assert risks[found.chosen] <= bound
    assert all(risk > bound for risk in risks[found.chosen + 1 :])
    assert all(point.p_value is None for point in found.path)
    assert found.chosen > (-1 if tested.chosen is None else tested.chosen), "expectation allows more than confidence"


def test_splits_are_recorded_disjoint(results: dict[str, CalibrationResult]) -> None:
    for found in results.values():
        assert set(found.splits) == {"fit", "path", "test"}
        assert sum(found.splits.values()) == 240
        assert found.splits["test"] == found.documents


def test_a_bundle_says_which_guarantee_it_has(place: tuple[Path, Path], results: Any) -> None:
    for method, words in (("crc", "in expectation"), ("ltt", "with 0.95 confidence")):
        apply_calibration(place[0], results[method])
        shown = CliRunner().invoke(main, ["inspect", str(place[0])]).output
        assert words in shown
        assert results[method].method in shown


def test_a_bold_point_without_its_proof_is_refused(place: tuple[Path, Path], results: dict[str, Any]) -> None:
    found = results["crc"].model_copy(update={"chosen": len(results["crc"].path) - 1})
    assert "mean loss is above" in (calibration_fault(found, Bundle.open(place[0]).manifest) or "")
    assert calibration_fault(results["crc"], Bundle.open(place[0]).manifest) is None


@pytest.mark.parametrize("changes", [{"error": 0.05}, {"method": "learn-then-test"}, {"splits": {"test": 3}}])
def test_numbers_of_the_other_method_are_refused(results: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CalibrationResult.model_validate({**results["crc"].model_dump(), **changes})


def test_an_error_is_not_for_it(place: tuple[Path, Path]) -> None:
    arguments = ["calibrate", str(place[0]), "--data", str(place[1]), "--method", "crc", "--error", "0.1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "--error" in done.output
