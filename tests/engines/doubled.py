"""Bundles of a device with engines of its graphs for the doubles."""

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from cuda_double import FakeCuda
from trt_double import FakeTensorRT

from eecompile.bundle.digest import file_sha256
from eecompile.bundle.read import read_bundle
from eecompile.engines.interface import HostMemory
from eecompile.engines.ort import OrtEngine
from eecompile.engines.plan import GraphPlan, read_plan
from eecompile.engines.records import EngineFile, EngineOptions, EngineRecord, engines_folder, write_record
from eecompile.engines.trt_runtime import TrtEngine, TrtRuntime
from eecompile.pipeline import BuildOptions, build
from eecompile.runtime import Bundle, backends
from eecompile.schema import GraphInfo, Thresholds
from eecompile.shapes import Adaptive, Decay, HeadShape
from eecompile.student.exits import ExitSpec
from eecompile.student.student import open_student
from eecompile.target import load_target

TARGET = "jetson-orin"
PROMPTS = ([5, 6, 7], [9] * 40)
EXITS = [
    ExitSpec(layer=1, gates=["learned", "max_prob"], gate_units=8, adapter="affine"),
    ExitSpec(layer=3, gates=["margin"]),
]
BOLD: dict[int, Thresholds | None] = {1: {"learned": 0.4, "max_prob": 0.02}, 3: {"margin": 0.0}}
COUNT = 24
_ENUMERATED = {
    "cudaMemcpyAsync": ("cudaMemcpyKind", 3), "cudaMemcpy2DAsync": ("cudaMemcpyKind", 6),
    "cudaStreamBeginCapture": ("cudaStreamCaptureMode", 1),
}  # fmt: skip
EXACT: dict[str, Any] = {"mode": "exact", "thresholds": BOLD}
MODES: list[dict[str, Any]] = [
    {"mode": "full"},
    {"mode": "confident"},
    {"mode": "confident", "kv": "propagate"},
    {"mode": "confident", "kv": "selected"},
    EXACT,
    {**EXACT, "pending_cap": 2},
]


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeTensorRT:
    """Put doubles in the place of the packages; options are the double's of TensorRT."""
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, **options)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def device_bundle(out: Path, source: Path, at: Sequence[int] = (), *, target: str = TARGET, **options: Any) -> Path:
    """Build the checkpoint at `source` for a Jetson; options are BuildOptions'."""
    build(open_student(source, at), load_target(target), out, BuildOptions(**options))
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


def on_host(bundle: Path) -> Bundle:
    """A bundle whose device graphs ONNX Runtime runs, as the CPU's back end runs a bundle's own."""
    opened = Bundle.open(bundle, backend="onnxruntime")
    manifest, memory = opened.manifest, HostMemory()
    assert manifest.device is not None
    memory.length = read_plan(bundle / manifest.device.plan).length
    paths = backends._device_paths(manifest)

    def load(info: GraphInfo) -> OrtEngine:
        engine = OrtEngine(bundle / paths[info.path], info)
        engine.memory = memory
        return engine

    return replace(opened, graphs=backends._loaded(backends._Request(opened.files, False, None), load, memory))


def opened(built: dict[str, Path], name: str = "engines") -> Bundle:
    """One of the bundles that the fixture `built` has, on the back end tensorrt."""
    return Bundle.open(built[name], backend="tensorrt")


def runtime_of(bundle: Bundle) -> TrtRuntime:
    """What the engines of a bundle share."""
    engine = bundle.graphs.embed
    assert isinstance(engine, TrtEngine)
    return engine.shared


def check_arguments(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the package looks at what the double was given, function by function, and takes it as far as it gets
    without a GPU."""
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[1]:
        pytest.skip("there is a GPU, and these addresses are not its own")
    for name, arguments in cuda.arguments.items():
        kind, at = _ENUMERATED.get(name, ("", -1))
        given = [getattr(runtime, kind)(a) if i == at else a for i, a in enumerate(arguments)]
        status = getattr(runtime, name)(*given)[0]
        assert isinstance(status, runtime.cudaError_t), name


def in_threads(gpu: Bundle, trt: FakeTensorRT) -> list[list[int] | BaseException]:
    """What sessions in two threads give that are let into each other's passes wherever nothing keeps them out."""
    trt.pause = threading.Barrier(2, timeout=0.05)
    found: list[list[int] | BaseException] = []

    def run() -> None:
        try:
            found.append(tiny.tokens(gpu, PROMPTS[0], 3, stop=()))
        except BaseException as e:
            found.append(e)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


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


def moving_bundle(folder: Path) -> tuple[Path, dict[int, dict[str, float]]]:
    """A bundle with engines, of small heads and thresholds that move; and thresholds that part of the tokens passes."""
    moves: list[Any] = [Decay(kind="decay", tokens=20), Adaptive(kind="adaptive", low=0.0, high=0.6, updates=9)]
    exits = [
        ExitSpec(layer=1, gates=["max_prob"], head="low_rank", schedule=moves[0]),
        ExitSpec(layer=2, gates=["learned", "entropy"], gate_units=4, head="shortlist"),
        ExitSpec(layer=3, gates=["margin"], schedule=moves[1]),
    ]
    heads = [
        HeadShape(name="low_rank", kind="low_rank", rank=8),
        HeadShape(name="shortlist", kind="shortlist", tokens=list(range(0, 40, 2))),
    ]
    source = tiny.add_exits(tiny.checkpoint(folder / "checkpoint"), exits, heads=heads)
    bundle = add_engines(device_bundle(folder / "bundle", source, context=96, precision="fp32", cache="fp32"))
    thresholds = {1: {"max_prob": 0.8}, 2: {"learned": 0.5, "entropy": 1.0}, 3: {"margin": 0.0}}
    return bundle, thresholds
