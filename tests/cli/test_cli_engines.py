"""`eecompile engines` on machines that are not the device: what it says, and its exit status."""

import sys
from pathlib import Path

import pytest
import tiny
from commands import cli, cli_json

from eecompile import pipeline_engines
from eecompile.engines.machine import ON_DEVICE
from eecompile.engines.plan import BuildPlan
from eecompile.errors import MissingBackend
from eecompile.target import load_target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("engines") / "checkpoint")


@pytest.fixture(scope="module")
def orin(checkpoint: Path) -> Path:
    """A bundle for a device that is not here."""
    out = checkpoint.with_name("orin")
    cli("build", checkpoint, "--target", "jetson-orin", "--exits", "2", "--context", "64", "-o", out)
    return out


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""

    def none_here(plan: BuildPlan, plugin: object, *, aot: bool) -> None:
        raise MissingBackend("there is no NVIDIA GPU here", mend=ON_DEVICE)

    monkeypatch.setattr("eecompile.engines.builders.tensorrt_builder", none_here)


def test_a_device_bundle_says_where_its_engines_are_built(orin: Path) -> None:
    said = cli("engines", orin, status=3).stderr
    assert "no NVIDIA GPU" in said
    assert "copy the bundle to the device" in said
    assert "none yet" in cli("inspect", orin).stdout
    assert cli_json("inspect", orin)["engines"] == []
    assert not (orin / "engines").exists()


def test_a_build_leaves_the_plan_and_a_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    options = ("--exits", "2", "--context", "64", "-o", tmp_path / "b")
    result = cli("build", checkpoint, "--target", "rtx", *options)
    assert "engines are still to be built" in result.stderr
    assert "pip install" in result.stderr
    assert cli_json("check", tmp_path / "b")["intact"]
    assert "tensorrt_rtx cannot be imported" in cli("engines", tmp_path / "b", status=3).stderr


def test_a_build_that_does_not_fit_says_so(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_target("jetson-orin").model_copy(update={"memory": 1000})
    monkeypatch.setattr("eecompile.target.load_target", lambda name: small)
    options = ("--exits", "2", "--context", "64", "-o", tmp_path / "b")
    said = cli("build", checkpoint, "--target", "jetson-orin", *options).stderr
    assert "warning: it needs" in said


def test_engines_of_another_target_than_the_bundle_s(orin: Path) -> None:
    assert "no NVIDIA GPU" in cli("engines", orin, "--target", "jetson-thor", status=3).stderr
    assert "dialect" in cli("engines", orin, "--target", "jetson-orin-jp6", status=2).stderr


def test_a_bundle_for_the_processor_needs_none(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "b", checkpoint)
    assert "no engines" in cli("engines", bundle, status=2).stderr


def test_a_changed_graph_is_not_built(orin: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(orin, tmp_path / "b")
    with open(copy / "segments" / "device_head.onnx", "r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    cli("engines", copy, status=4)
    assert pipeline_engines.device_plan(pipeline_engines.read_bundle(orin)).target == "jetson-orin"
