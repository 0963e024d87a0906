"""What tests of engines share: bundles to build engines of, bundles with engines for the doubles, and the doubles."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from compiled import compile_all
from doubled import BOLD, EXITS, add_engines, device_bundle, install
from native_doubles import Doubles, compile_doubles
from planned import Source
from trt_double import FakeTensorRT

from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.engines.plan import BuildPlan
from eecompile.runtime import backends


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle for a device, calibrated; and copies of it with engines, whose caches are updated in place or copied.

    Its graphs compute in float32, so that what a double runs is what ONNX Runtime runs of the bundle's own, bit by bit.
    """
    root = tmp_path_factory.mktemp("engines")
    source = tiny.add_exits(tiny.checkpoint(root / "checkpoint"), EXITS)
    plain = device_bundle(
        root / "plain",
        source,
        context=96,
        precision="fp32",
        cache="fp32",
        kv=("catch_up", "propagate", "selected"),
        slots=3,
    )
    for kv in ("propagate", "selected", "catch_up"):
        tiny.calibrate(plain, [BOLD[1], BOLD[3]], kv)
    return {"plain": plain} | {
        name: add_engines(Path(shutil.copytree(plain, root / name))) for name in ("engines", "copied")
    }


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Doubles:
    """The doubles for the C++ runtime, and eecompile-run compiled with TensorRT."""
    return compile_doubles(tmp_path_factory.mktemp("native"), compile_all("cpp-test") / "eecompile-run")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Doubles in the place of both packages. The bundle "copied" has caches that its engines cannot update in place, as
    in the dialect classic."""
    honest = backends.device_plan

    def read(files: BundleFiles) -> BuildPlan:
        plan = honest(files)
        if files.path.name != "copied":
            return plan
        graphs = [g.model_copy(update={"in_place": {}, "copied": {**g.copied, **g.in_place}}) for g in plan.graphs]
        return plan.model_copy(update={"graphs": graphs})

    monkeypatch.setattr(backends, "device_plan", read)
    return install(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny bundle of two slots, whose graphs are of standard operators."""
    root = tmp_path_factory.mktemp("engines")
    path = tiny.bundle_at(root / "bundle", tiny.checkpoint(root / "checkpoint"), [2], slots=2)
    return path, read_bundle(path).manifest


@pytest.fixture
def bundle(source: Source, tmp_path: Path) -> Path:
    """A bundle of one's own; its files are the source's."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "segments").symlink_to(source[0] / "segments")
    return tmp_path / "bundle"


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a text the module `tensorrt` of processes that are started."""

    def place(text: str) -> None:
        (tmp_path / "tensorrt.py").write_text(text)

    path = [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return place
