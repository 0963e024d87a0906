"""A build plan of a tiny bundle's graphs, as they are: enough for a builder, which looks at shapes and operators; and
a machine whose GPU and TensorRT are doubles."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.bundle.digest import file_sha256
from eecompile.bundle.manifest import Manifest
from eecompile.engines.child import run_job
from eecompile.engines.jobs import EngineDone, EngineJob
from eecompile.engines.machine import Gpu
from eecompile.engines.plan import BuildPlan, GraphPlan, ProfileShapes, ShapeRange
from eecompile.engines.records import engines_folder
from eecompile.engines.tensorrt import tensorrt_builder
from eecompile.plugins.exit_decision.aot import compile_ptx
from eecompile.plugins.library import PluginLibrary, load_library
from eecompile.schema import GraphInfo

LENGTH = 96
CORE = "c" * 64
ORIN = Gpu("Orin", 87, "12.6")
Source = tuple[Path, Manifest]


def plan_of(root: Path, manifest: Manifest, **changes: Any) -> BuildPlan:
    """Every graph of the bundle at `root` in a decode and a prefill profile; `changes` are the plan's."""
    graphs = [(Path(info.path).stem, info) for info in manifest.graphs.all() if info is not manifest.graphs.reference]
    fields: dict[str, Any] = {
        "target": "jetson-orin", "backend": "tensorrt", "dialect": "modern", "opset": 24, "compute": "float16",
        "cache": "fp32", "precision": "fp16", "context": 64, "slots": manifest.slots, "length": LENGTH, "sm": [87],
        "tensorrt": "10.3", "tensorrt_below": "12.0", "cuda": "12.6", "plugin": "preferred",
        "graphs": [_graph(root, name, info) for name, info in graphs],
    }  # fmt: skip
    return BuildPlan(**{**fields, **changes})


def _graph(root: Path, name: str, info: GraphInfo) -> GraphPlan:
    decides = any(t.name == c.EXIT_FLAG for t in info.outputs)
    profiles = [_profile(info, "decode", 1, 9), _profile(info, "prefill", 16, 16)]
    return GraphPlan(
        name=name, path=info.path, sha256=file_sha256(root / info.path), weights=[], plugin=decides,
        flags=["strongly_typed"], profiles=profiles[: 1 if decides else 2],
    )  # fmt: skip


def _profile(info: GraphInfo, name: Any, least: int, most: int) -> ProfileShapes:
    def shape(tensor: Any, rows: int) -> list[int]:
        sizes = {"B": 1, "R": rows, "N": rows, c.LENGTH: LENGTH}
        return [size if isinstance(size, int) else sizes[size] for size in tensor.shape]

    shapes = {t.name: ShapeRange(min=shape(t, least), opt=shape(t, least), max=shape(t, most)) for t in info.inputs}
    return ProfileShapes(name=name, shapes=shapes)


def inside(trt: Any, kernels: Callable[[], bytes] = compile_ptx) -> Callable[[EngineJob, Any, int], EngineDone]:
    """Runs jobs in this process, with `trt` in place of the module. kernels: gives the PTX that engines carry."""

    def run(job: EngineJob, progress: Callable[[str], None], lock: int) -> EngineDone:
        os.fstat(lock)
        return run_job(
            job, progress, load=lambda name: trt, register=partial(load_library, dlopen=trt.dlopen),
            kernels=kernels,
        )  # fmt: skip

    return run


def orin(plan: BuildPlan, trt: Any, plugin: PluginLibrary | None = None, gpu: Gpu = ORIN, *, aot: bool = False) -> Any:
    return tensorrt_builder(plan, plugin, aot=aot, gpu=lambda: gpu, load=lambda name: trt)


def engine(bundle: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((engines_folder(bundle, "jetson-orin") / f"{name}.plan").read_text())
    return document


def job_of(source: Source, name: str) -> EngineJob:
    """A job for one of the plan's graphs."""
    graph = plan_of(*source).graph(name)
    out = source[0].parent / f"{name}.plan"
    return EngineJob(
        module="tensorrt", graph=name, onnx=str(source[0] / graph.path), out=str(out), profiles=graph.profiles
    )
