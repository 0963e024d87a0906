"""What tests of engines share: bundles with engines for the doubles, and the doubles."""

import shutil
from pathlib import Path

import pytest
import tiny
from doubled import BOLD, EXITS, add_engines, device_bundle, install
from trt_double import FakeTensorRT

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


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Doubles in the place of both packages. The bundle "copied" has caches that its engines cannot update in place, as
    in the dialect classic."""
    honest = backends.read_plan

    def read(path: Path) -> BuildPlan:
        plan = honest(path)
        if path.parents[1].name != "copied":
            return plan
        graphs = [g.model_copy(update={"in_place": {}, "copied": {**g.copied, **g.in_place}}) for g in plan.graphs]
        return plan.model_copy(update={"graphs": graphs})

    monkeypatch.setattr(backends, "read_plan", read)
    return install(monkeypatch)
