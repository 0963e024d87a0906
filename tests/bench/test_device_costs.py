"""Which costs a bundle's exits are chosen by: its profile, or the cost model of a device that is not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from profiled import CHOSEN, build_tiny, calibrate, costs_of

from eecompile.bench.cost_model import predict_costs
from eecompile.bench.defaults import apply_default_policy
from eecompile.bench.device_costs import costs_of_bundle, is_elsewhere, setting_from_manifest
from eecompile.bench.rates import rates_from_target
from eecompile.bench.work_student import works_from_student
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import write_overlay
from eecompile.errors import UsageError
from eecompile.pipeline import BuildOptions, build
from eecompile.student.student import open_student
from eecompile.target import load_target

ORIN = load_target("jetson-orin")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_tiny(tmp_path)


@pytest.mark.parametrize(("precision", "compute"), [("fp32", "float32"), ("fp16", "float16")])
def test_a_device_elsewhere_is_priced_as_its_engines_compute(tmp_path: Path, precision: str, compute: str) -> None:
    """The same from the files of a bundle for it and from the student's shapes, with caches in float16."""
    student = open_student(tiny.checkpoint(tmp_path / "source"), [1, 2])
    build(student, ORIN, tmp_path / "orin", BuildOptions(precision=precision))
    files = read_bundle(tmp_path / "orin", integrity="size")
    works = works_from_student(student, precision, "fp16")
    assert works["segment_0"].cached == 2 * 2 * 8 * 2
    setting = setting_from_manifest(files.manifest, ORIN)
    expected = predict_costs(works, rates_from_target(ORIN, compute), setting)
    costs = costs_of_bundle(files)
    for graph in works:
        assert costs.seconds(graph, 3, 64) == pytest.approx(expected.seconds(graph, 3, 64))


def test_a_profile_takes_the_place_of_the_model(bundle: Path) -> None:
    names = ["embed", "head", "segment_0", "segment_1", "segment_2", "exit_0", "exit_1"]
    passes = costs_of(**dict.fromkeys(names, 7.0))
    with pytest.raises(UsageError, match="no profile to choose by"):
        costs_of_bundle(read_bundle(bundle, integrity="size"))
    assert costs_of_bundle(read_bundle(bundle, integrity="size"), ORIN).seconds("head", 1, 64) < 1
    write_overlay(bundle, "overlays/profile-cpu.json", {"device": "paper", "threads": 1, "passes": passes})
    assert costs_of_bundle(read_bundle(bundle, integrity="size"), ORIN).seconds("head", 1, 64) == 7.0


def test_exits_are_chosen_for_the_device(bundle: Path) -> None:
    """Every token could leave at the first exit: worth it where passes take their bytes' time, as on paper here."""
    calibrate(bundle, traces=["aa" * 40], draft_traces=["aa" * 40], draft=CHOSEN)
    paper = ORIN.model_copy(update={"name": "paper", "bandwidth": 1e6, "launch": 0.0, "kernel": 0.0})
    policy = apply_default_policy(bundle, target=paper)
    assert [e.confident for e in policy.exits] == [CHOSEN[0], None]
    assert "on paper by its data sheet" in policy.exits[0].reason
    assert read_bundle(bundle).policy == policy


def test_what_is_elsewhere() -> None:
    assert [is_elsewhere(name) for name in ("jetson-orin", "h100", "cpu", "rtx", "mine")] == [True, True] + [False] * 3
