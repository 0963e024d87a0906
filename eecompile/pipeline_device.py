"""`build` for targets that run engines: the ONNX graphs they are made of, and the plan of what to make of them."""

from pathlib import Path
from typing import Any

import onnx

from eecompile import contract as c
from eecompile.bundle.digest import file_sha256
from eecompile.engines.plan import BuildPlan, GraphPlan, write_plan
from eecompile.engines.profiles import PassSizes, profile_shapes
from eecompile.errors import UsageError
from eecompile.schema import GraphInfo
from eecompile.segments.device import write_device_graphs
from eecompile.segments.split import Cut
from eecompile.segments.weights import WeightBook
from eecompile.target import Target


def refuse_device(target: Target, what: str) -> None:
    """Raise UsageError where engines would have to be made of a model that they are not made of."""
    if target.backend != "onnxruntime":
        raise UsageError(
            f"{what} has no graphs for engines, and {target.name} runs nothing else",
            mend="build it with --target cpu: engines are made of decoder-only language models",
        )


def choose_device(target: Target, precision: str, cache: str | None, compute: str | None) -> dict[str, str]:
    """What keys and values are kept in and engines compute in; raises UsageError where these do not go together."""
    if target.backend == "onnxruntime":
        if compute is not None:
            raise UsageError(f"{target.name} runs no engines to compute in {compute}", mend="leave --compute out")
        return {"cache": cache or "fp32"}
    chosen = compute or ("float32" if precision == "fp32" else "float16")
    if chosen not in c.COMPUTE:
        raise UsageError(f"engines do not compute in {chosen!r}", mend=f"types: {', '.join(c.COMPUTE)}")
    if target.backend == "tensorrt_rtx" and chosen == "float32":
        raise UsageError("TensorRT-RTX builds no attention in float32", mend="leave --compute out, or give float16")
    if precision == "fp32" and chosen != "float32":
        raise UsageError(f"weights of float32 are not multiplied in {chosen}", mend="build with --precision fp16")
    if precision in c.QUANTISED and target.dialect == "classic":
        raise UsageError(
            f"{target.name} takes no {precision}: blocks of weights need opset 21, its parser stops at 20",
            mend="build with --precision fp16 or w8a8",
        )
    if precision in c.SCALED and chosen == "float32":
        raise UsageError(f"products of {precision} give no float32", mend="leave --compute out, or give float16")
    if cache == "int8":
        raise UsageError(
            "engines have no int8 caches: TensorRT's KV-cache update takes float32, float16 and bfloat16",
            mend="build with --cache fp16",
        )
    return {"cache": cache or "fp16", "compute": chosen}


def write_device(cut: Cut, target: Target, chosen: dict[str, Any], root: Path, book: WeightBook) -> dict[str, Any]:
    """Write a device's graphs and its build plan into the bundle at `root`; returns the manifest's `device`."""
    dialect, compute = target.dialect, chosen["compute"]
    graphs = write_device_graphs(cut, root, book, dialect=dialect, opset=target.opset, compute=compute)
    infos = [graphs.embed, *graphs.segments, *graphs.exits, graphs.head, *graphs.heads, *filter(None, graphs.kv)]
    length = chosen["context"] + cut.slack
    sizes = PassSizes(chosen["slots"], chosen["pending_cap"], chosen["minimum_rows"], c.PREFILL_ROWS, length)
    plans = [_graph_plan(root, info, sizes, in_place=dialect == "modern") for info in infos]
    described = {"target": target.name, "dialect": dialect, "compute": compute, "cache": chosen["cache"]}
    write_plan(root / c.DEVICE_PLAN, BuildPlan.model_validate({
        **described, "backend": target.backend, "opset": _opset(root / infos[0].path), "precision": chosen["precision"],
        "context": chosen["context"], "slots": chosen["slots"], "length": length, "sm": target.sm,
        "tensorrt": target.tensorrt, "tensorrt_below": target.tensorrt_below, "cuda": target.cuda,
        "plugin": _plugin(target), "graphs": plans,
    }))  # fmt: skip
    opset = _opset(root / infos[0].path)
    return {**described, "opset": opset, "graphs": graphs.described(), "plan": c.DEVICE_PLAN}


def _plugin(target: Target) -> str:
    """How the exit decision gets into engines (engines/plan.py)."""
    if target.backend == "tensorrt_rtx":
        return "never"
    return "required" if target.dialect == "classic" else "preferred"


def _graph_plan(root: Path, info: GraphInfo, sizes: PassSizes, *, in_place: bool) -> GraphPlan:
    model = onnx.load(root / info.path, load_external_data=False)
    files = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    outputs = {tensor.name for tensor in info.outputs}
    caches = [t.name for t in info.inputs if c.updated(t.name) in outputs and t.name != c.HIDDEN]
    updated = {name: c.updated(name) for name in caches}
    integers = {t.name for t in info.inputs if t.dtype == "int64"}
    aliased = {name: out for name, out in updated.items() if in_place and name not in integers}
    return GraphPlan(
        name=Path(info.path).stem.removeprefix(c.DEVICE_PREFIX),
        path=info.path,
        sha256=file_sha256(root / info.path),
        weights=[f"segments/{file}" for file in sorted(files)],
        plugin=any(node.domain == c.DECISION_DOMAIN for node in model.graph.node),
        flags=["strongly_typed"],
        profiles=profile_shapes(info.inputs, sizes),
        in_place=aliased,
        copied={name: out for name, out in updated.items() if name not in aliased},
    )


def _opset(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return int(next(o.version for o in model.opset_import if not o.domain))
