"""A build plan of a tiny bundle's graphs, as they are: enough for a builder, which looks at shapes and operators."""

from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.bundle.digest import file_sha256
from eecompile.bundle.manifest import Manifest
from eecompile.engines.plan import BuildPlan, GraphPlan, ProfileShapes, ShapeRange
from eecompile.schema import GraphInfo

LENGTH = 96


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
