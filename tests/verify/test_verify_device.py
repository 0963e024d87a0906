"""verify's check of a device's graphs: it holds for those that were built, and sees a changed one."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import cli

from eecompile.bundle.read import read_bundle
from eecompile.pipeline import BuildOptions, build
from eecompile.student.student import open_student
from eecompile.target import load_target
from eecompile.verify import verify_bundle
from eecompile.verify.compare import Comparator, measure_with_numpy
from eecompile.verify.device import check_device, passes

COMPARE = Comparator("numpy", measure_with_numpy)
IDS = list(range(3, 27))


@pytest.fixture(scope="module", params=["h100", "jetson-orin-jp6"])
def bundle(request: Any, shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "bundle"
    build(open_student(shelf.checkpoint(), [2]), load_target(request.param), path, BuildOptions())
    return path


def test_verify_holds_them_against_the_bundles_own(bundle: Path) -> None:
    report = verify_bundle(bundle, tokens=4)
    (check,) = [c for c in report.checks if c.name.startswith("device graphs")]
    assert check.passed
    assert 0 < check.figures["mean"] < check.figures["largest"] < 5e-2
    assert report.passed


def test_a_changed_operator_is_seen(bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = read_bundle(root).manifest
    assert manifest.device is not None
    path = root / manifest.device.graphs.segments[1].path
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Tanh"
    path.write_bytes(model.SerializeToString())
    (check,) = check_device(root, manifest, IDS, COMPARE)
    assert not check.passed


def test_there_is_nothing_to_check_without_a_device(shelf: Any) -> None:
    opened = shelf.bundle(at=[1, 3])
    assert check_device(opened.files.path, opened.manifest, IDS, COMPARE) == []


def test_passes_are_wide_narrow_and_ragged() -> None:
    wide, one, few = passes(IDS, 256, 2)
    assert [p.ids.shape for p in (wide, one, few)] == [(2, 16), (2, 1), (2, 5)]
    assert (wide.live.tolist(), one.start.tolist(), few.start.tolist()) == ([16, 13], [16, 13], [17, 14])
    assert one.ids[:, 0].tolist() == [IDS[16], IDS[13]]
    assert sum(p.ids.shape[1] for p in passes(IDS, 16, 1)) <= 16


def test_inspect_shows_them(bundle: Path) -> None:
    done = cli("inspect", bundle)
    assert "opset 2" in done.stdout
    assert "float16" in done.stdout
