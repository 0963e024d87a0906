"""Bundles of a device with engines of its graphs for the doubles."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cuda_double import FakeCuda
from trt_double import FakeTensorRT

from eecompile.bundle.digest import file_sha256
from eecompile.bundle.read import read_bundle
from eecompile.engines.plan import GraphPlan, read_plan
from eecompile.engines.records import EngineFile, EngineOptions, EngineRecord, engines_folder, write_record
from eecompile.pipeline import BuildOptions, build
from eecompile.student.student import open_student
from eecompile.target import load_target

TARGET = "jetson-orin"


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeTensorRT:
    """Put doubles in the place of the packages; options are the double's of TensorRT."""
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, **options)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def device_bundle(out: Path, source: Path, at: Sequence[int] = (), **options: Any) -> Path:
    """Build the checkpoint at `source` for a Jetson; options are BuildOptions'."""
    build(open_student(source, at), load_target(TARGET), out, BuildOptions(**options))
    return out


def add_engines(bundle: Path, *, target: str = TARGET, **changes: Any) -> Path:
    """Make engines of the device's graphs for the double, and their record, with `changes` of its fields."""
    manifest = read_bundle(bundle, integrity="size").manifest
    assert manifest.device is not None
    plan = read_plan(bundle / manifest.device.plan)
    folder = engines_folder(bundle, target)
    folder.mkdir(parents=True)
    options = changes.pop("options", EngineOptions(compute=plan.compute))
    engines = {graph.name: _engine(bundle, folder, graph, stripped=options.stripped) for graph in plan.graphs}
    fields = {
        "core": manifest.digest, "target": target, "backend": "tensorrt", "sm": [87], "tensorrt": "10.16.2",
        "cuda": "13.2", "plugin": None, "options": options, "engines": engines,
    }  # fmt: skip
    write_record(folder, EngineRecord(**{**fields, **changes}))
    return bundle


def _engine(bundle: Path, folder: Path, graph: GraphPlan, *, stripped: bool) -> EngineFile:
    profiles = [
        {name: [shapes.min, shapes.opt, shapes.max] for name, shapes in profile.shapes.items()}
        for profile in graph.profiles
    ]
    path = folder / f"{graph.name}.plan"
    path.write_text(json.dumps({"onnx": str(bundle / graph.path), "profiles": profiles, "stripped": stripped}))
    return EngineFile(
        file=path.name, onnx=graph.sha256, bytes=path.stat().st_size, sha256=file_sha256(path),
        profiles=[profile.name for profile in graph.profiles], layers={}, seconds=0.0,
    )  # fmt: skip
