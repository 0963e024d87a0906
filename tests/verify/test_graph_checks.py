"""Which checks a bundle's graphs get, those for a device among them."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import tiny

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.pipeline import BuildOptions, build
from eecompile.runtime import Bundle
from eecompile.student.student import open_student
from eecompile.target import load_target
from eecompile.verify import graph_checks as module
from eecompile.verify.chain import cache_inputs, graph_name
from eecompile.verify.graph_checks import graph_checks
from eecompile.verify.recording import Recording


def device_bundle(out: Path, target: str) -> Bundle:
    """A tiny bundle for a device, in fp16."""
    source = tiny.checkpoint(out.parent / f"{out.name}-model", tiny.config(head_dim=16), gain=0.4)
    build(open_student(source, [1, 3]), load_target(target), out, BuildOptions(precision="fp16"))
    return Bundle.open(out)


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For a TensorRT that knows the new operators."""
    return device_bundle(tmp_path_factory.mktemp("device") / "orin", "jetson-orin")


def infos(manifest: Manifest) -> dict[str, object]:
    """Every graph by its name."""
    assert manifest.device is not None
    return {graph_name(info): info for graphs in (manifest.graphs, manifest.device.graphs) for info in graphs.all()}


def test_a_device_s_graphs_are_held_to_the_bundle_s_own(orin: Bundle) -> None:
    """On caches of the one length that they take, by ONNX Runtime here."""
    recording, manifest = Recording(orin.files), orin.manifest
    checks = {check.name: check for check in graph_checks(orin, recording)}
    names = ["embed", "segment_0", "segment_1", "segment_2", "exit_0", "exit_1", "head"]
    assert list(checks) == [*names, *(f"device_{name}" for name in names)]
    for name in names:
        check, info = checks[f"device_{name}"], infos(manifest)[f"device_{name}"]
        assert check.expected is not None
        assert check.runner == ("--onnxrt",)
        feeds = list(Recording(orin.files, check.feeds[1]).feeds(check.feeds[0]))
        outputs, rules = check.expected
        for feed, wanted in zip(feeds, outputs, strict=True):
            assert all(feed[t.name].shape[2] == manifest.model.context + manifest.slack for t in cache_inputs(info))
            judged = rules.judge(recording.chain.run_graph(info, feed), wanted)
            assert set(judged) == set(wanted)
            assert all(found.passed for found in judged.values()), (name, judged)
    hidden = checks["device_segment_1"].expected[0][0][c.HIDDEN_OUT]
    changed = {c.HIDDEN_OUT: np.roll(hidden, 1, axis=1)}
    assert not checks["device_segment_1"].expected[1].judge(changed, {c.HIDDEN_OUT: hidden})[c.HIDDEN_OUT].passed


def test_where_tensorrt_is_installed_it_runs_them_too(orin: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the widest profile of the plan, whose sizes hold the inputs."""
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None))
    checks = {check.name: check for check in graph_checks(orin, Recording(orin.files))}
    by_tensorrt = checks["device_segment_1_trt"]
    assert by_tensorrt.path == checks["device_segment_1"].path
    assert by_tensorrt.expected is not None
    assert by_tensorrt.runner[:2] == ("--trt", "--strongly-typed")
    size = orin.manifest.model.hidden
    for option, rows in (("min", 1), ("opt", 128), ("max", 128)):
        first = by_tensorrt.runner.index(f"--trt-{option}-shapes") + 1
        assert f"hidden:[1,{rows},{size}]" in by_tensorrt.runner[first : first + 8]
    assert "segment_1_trt" not in checks


def test_a_decision_that_is_the_plugin_s_alone_is_left_to_engines(tmp_path: Path) -> None:
    opened = device_bundle(tmp_path / "jp6", "jetson-orin-jp6")
    names = [check.name for check in graph_checks(opened, Recording(opened.files))]
    assert "device_segment_1" in names
    assert "head" in names
    assert "device_head" not in names
