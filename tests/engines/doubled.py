"""Bundles with device graphs and engines for the doubles: the device's graphs are the bundle's own, renamed."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_double import FakeCuda
from trt_double import FakeTensorRT

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout, file_sha256
from eecompile.bundle.manifest import Graphs, Manifest
from eecompile.bundle.read import read_bundle
from eecompile.engines.plan import BuildPlan, GraphPlan, read_plan, write_plan
from eecompile.engines.profiles import PassSizes, profile_shapes
from eecompile.engines.records import EngineFile, EngineOptions, EngineRecord, engines_folder, write_record
from eecompile.schema import GraphInfo


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeTensorRT:
    """Put doubles in the place of the packages; options are the double's of TensorRT."""
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, **options)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def with_engines(source: Path, out: Path, *, copied: bool = False) -> Path:
    """A copy of the bundle at `source` that has device graphs, and engines of them for the double.

    copied: the caches are not updated in place, as in the dialect that has no operator for it.
    """
    bundle = Path(shutil.copytree(source, out))
    add_device_graphs(bundle, copied=copied)
    add_engines(bundle)
    return bundle


def add_device_graphs(bundle: Path, *, copied: bool = False) -> None:
    """Give a bundle device graphs and a build plan."""
    manifest = read_bundle(bundle, integrity="size").manifest
    plans = []
    for info in manifest.graphs.all():
        if info is manifest.graphs.reference:
            continue
        path = bundle / device_path(info)
        shutil.copyfile(bundle / info.path, path)
        plans.append(graph_plan(manifest, info, path, copied=copied))
    plan = BuildPlan(
        target=manifest.target, backend="tensorrt", dialect="modern", opset=24, compute="float32", cache=manifest.cache,
        precision=manifest.precision, context=manifest.model.context, slots=manifest.slots, length=length_of(manifest),
        sm=[87], tensorrt="10.3", tensorrt_below="", cuda="", plugin="never", graphs=plans,
    )  # fmt: skip
    write_plan(bundle / c.DEVICE_PLAN, plan)
    document = json.loads((bundle / c.MANIFEST).read_text())
    graphs = Graphs.model_validate(document["graphs"]).model_dump(exclude={"reference"})
    document["device"] = {
        "target": plan.target, "dialect": "modern", "opset": 24, "compute": "float32", "cache": plan.cache,
        "graphs": renamed(graphs), "plan": c.DEVICE_PLAN,
    }  # fmt: skip
    for name in [*(g.path for g in plans), c.DEVICE_PLAN]:
        document["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": file_sha256(bundle / name)}
    rewrite(bundle / c.MANIFEST, document)
    for overlay in (bundle / "overlays").glob("*.json"):
        rewrite(overlay, {**json.loads(overlay.read_text()), "core": document["digest"]})


def rewrite(path: Path, document: dict[str, Any]) -> None:
    """Write a manifest or overlay with the digest that it should have."""
    document["digest"] = document_digest(document)
    path.write_bytes(document_layout(document))


def length_of(manifest: Manifest) -> int:
    """T of the device's caches."""
    return -(-(manifest.model.context + manifest.slack) // c.CACHE_BUCKET) * c.CACHE_BUCKET


def device_path(info: GraphInfo) -> str:
    """Where the device's twin of a graph lies."""
    path = Path(info.path)
    return str(path.with_name(f"device_{path.name}"))


def renamed(graphs: Any) -> Any:
    """Graphs as JSON with the device's paths."""
    if isinstance(graphs, dict):
        return {k: device_path(GraphInfo(path=v, inputs=[], outputs=[])) if k == "path" else renamed(v)
                for k, v in graphs.items()}  # fmt: skip
    return [renamed(graph) for graph in graphs] if isinstance(graphs, list) else graphs


def graph_plan(manifest: Manifest, info: GraphInfo, path: Path, *, copied: bool) -> GraphPlan:
    """What to build of one graph."""
    sizes = PassSizes(
        manifest.slots, manifest.pending_cap, manifest.minimum_rows, manifest.prefill_rows, length_of(manifest)
    )
    updates = {c.updated(t.name): t.name for t in info.inputs if c.LENGTH in t.shape}
    return GraphPlan(
        name=Path(info.path).stem, path=device_path(info), sha256=file_sha256(path), weights=[], plugin=False, flags=[],
        profiles=profile_shapes(info.inputs, sizes), in_place={} if copied else updates,
        copied=updates if copied else {},
    )  # fmt: skip


def add_engines(bundle: Path) -> None:
    """Make engines of the device's graphs for the double, and their record."""
    manifest = read_bundle(bundle, integrity="size").manifest
    assert manifest.device is not None
    plan = read_plan(bundle / manifest.device.plan)
    folder = engines_folder(bundle, plan.target)
    folder.mkdir(parents=True)
    engines = {graph.name: _engine(bundle, folder, graph) for graph in plan.graphs}
    record = EngineRecord(
        core=manifest.digest, target=plan.target, backend="tensorrt", sm=[87], tensorrt="10.13.3", cuda="12.6",
        plugin=None, options=EngineOptions(compute=plan.compute), engines=engines,
    )  # fmt: skip
    write_record(folder, record)


def _engine(bundle: Path, folder: Path, graph: GraphPlan) -> EngineFile:
    profiles = [
        {name: [shapes.min, shapes.opt, shapes.max] for name, shapes in profile.shapes.items()}
        for profile in graph.profiles
    ]
    path = folder / f"{graph.name}.plan"
    path.write_text(json.dumps({"onnx": str(bundle / graph.path), "profiles": profiles}))
    return EngineFile(
        file=path.name, onnx=graph.sha256, bytes=path.stat().st_size, sha256=file_sha256(path),
        profiles=[profile.name for profile in graph.profiles], layers={}, seconds=0.0,
    )  # fmt: skip
