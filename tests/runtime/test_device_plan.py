"""A build plan decides what engines are built: one that is not of its bundle is refused, whatever its hash says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.engines.plan import BuildPlan
from eecompile.errors import UsageError
from eecompile.pipeline import BuildOptions, build
from eecompile.runtime.device_plan import device_plan, plan_fault
from eecompile.student.exits import ExitSpec
from eecompile.student.student import open_student
from eecompile.target import load_target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    """A bundle for a device."""
    folder = tmp_path_factory.mktemp("device_plan")
    source = tiny.add_exits(tiny.checkpoint(folder / "source"), [ExitSpec(layer=1, gates=["max_prob"])])
    build(open_student(source), load_target("jetson-orin"), folder / "bundle", BuildOptions())
    return read_bundle(folder / "bundle")


def graphs(**changes: Any) -> Callable[[BuildPlan], dict[str, Any]]:
    """The first segment changed."""
    return lambda plan: {"graphs": [g.model_copy(update=changes) if g.name == "segment_0" else g for g in plan.graphs]}


FAULTS: dict[str, tuple[Callable[[BuildPlan], dict[str, Any]], str]] = {
    "target": (lambda plan: {"target": "h100"}, "target is h100"),
    "dialect": (lambda plan: {"dialect": "classic"}, "dialect is classic"),
    "context": (lambda plan: {"context": plan.context + 1}, "context is"),
    "length": (lambda plan: {"length": 7}, "length is 7"),
    "slots": (lambda plan: {"slots": 9}, "slots is 9"),
    "cut": (lambda plan: {"graphs": plan.graphs[:3]}, "other graphs"),
    "twice": (lambda plan: {"graphs": [*plan.graphs, plan.graphs[0]]}, "other graphs"),
    "hash": (graphs(sha256="0" * 64), "segment_0 has another SHA-256"),
    "weights": (graphs(weights=["../../secret"]), "no file of the bundle"),
    "update": (graphs(in_place={"nonsense": "bogus"}), "no input or output"),
    "copy": (graphs(copied={"hidden": "bogus"}), "no input or output"),
}


def test_its_own_plan_is_taken(files: BundleFiles) -> None:
    assert {graph.name for graph in device_plan(files).graphs} >= {"embed", "segment_0", "exit_0", "head"}


@pytest.mark.parametrize("name", FAULTS)
def test_another_is_refused(files: BundleFiles, name: str) -> None:
    plan, (change, message) = device_plan(files), FAULTS[name]
    assert message in str(plan_fault(plan.model_copy(update=change(plan)), files.manifest))


def test_profiles_are_of_the_graphs_inputs(files: BundleFiles) -> None:
    plan = device_plan(files)
    cut = plan.graph("head").profiles[0].model_copy(update={"shapes": {}})
    changed = [g.model_copy(update={"profiles": [cut]}) if g.name == "head" else g for g in plan.graphs]
    assert "profiles of head" in str(plan_fault(plan.model_copy(update={"graphs": changed}), files.manifest))


def test_without_device_graphs_there_is_none(files: BundleFiles) -> None:
    bare = replace(files, manifest=files.manifest.model_copy(update={"device": None}))
    with pytest.raises(UsageError, match="no device graphs"):
        device_plan(bare)


def test_tensorrt_rtx_computes_no_float32(files: BundleFiles, tmp_path: Path) -> None:
    student = open_student(files.path.parent / "source")
    with pytest.raises(UsageError, match="no attention in float32"):
        build(student, load_target("rtx"), tmp_path / "out", BuildOptions(compute="float32"))
