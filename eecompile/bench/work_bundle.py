"""The work of every graph of a bundle, read off its ONNX files; no weight is read."""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx

from eecompile import contract as c
from eecompile.bench.work import Matrix, Work
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.heads import head_graph
from eecompile.schema import GraphInfo, TensorInfo
from eecompile.segments.decoder import SHARED_FILE

_SIZES = {"float32": 4, "float16": 2, "int8": 1, "int64": 8, "bool": 1}
_ITEMS = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT8: 1}


def graphs_by_name(manifest: Manifest) -> dict[str, GraphInfo]:
    """The graphs that a profile has times of, by the names it has for them."""
    graphs = manifest.graphs
    found = {"embed": graphs.embed, "head": graphs.head}
    found |= {f"segment_{i}": info for i, info in enumerate(graphs.segments)}
    found |= {f"kv_{i}": info for i, info in enumerate(graphs.kv) if info is not None}
    found |= {f"exit_{i}": info for i, info in enumerate(graphs.exits)}
    return found | {head_graph(h.name): info for h, info in zip(manifest.heads, graphs.heads, strict=True)}


def works_from_bundle(manifest: Manifest, root: Path) -> dict[str, Work]:
    """The work of each graph that a profile has times of. root: the bundle's directory."""
    return {name: _work(manifest, root, name, info) for name, info in graphs_by_name(manifest).items()}


def _work(manifest: Manifest, root: Path, name: str, info: GraphInfo) -> Work:
    graph = onnx.load(str(root / info.path), load_external_data=False).graph
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    stored = [t for t in graph.initializer if t.external_data and _entry(t, "location") != SHARED_FILE]
    weights = [t for t in stored if t.name not in tables]
    inputs = [t for t in info.inputs if all(isinstance(size, int) for size in t.shape)]  # gates, LoRA
    matrices = [*_matrices(weights, _multiplied(graph)), *(_given(t) for t in inputs if len(t.shape) == 2)]
    of_matrices = sum(m.bytes for m in matrices)
    total = sum(int(_entry(t, "length")) for t in weights) + sum(_SIZES[t.dtype] * _count(t) for t in inputs)
    attends = 0 if name.startswith("kv_") else info.layers
    model, crosses = manifest.model, manifest.source is not None
    return Work.of(
        matrices,
        vectors=total - of_matrices,
        looked_up=float(sum(t.dims[1] * _ITEMS[t.data_type] for t in stored if t.name in tables)),
        cached=float(sum(_cached(t) for t in info.inputs)) if attends else 0.0,
        attended=2.0 * attends * model.heads * model.head_dim * (1 + crosses),
        layers=attends,
    )


def _multiplied(graph: onnx.GraphProto) -> set[str]:
    """What products take, and what that is widened from."""
    names = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    for kinds in (("Mul",), ("Cast", "DequantizeLinear")):  # from the product back to what is stored
        names |= {node.input[0] for node in graph.node if node.op_type in kinds and node.output[0] in names}
    return names


def _matrices(weights: list[onnx.TensorProto], multiplied: set[str]) -> Iterator[Matrix]:
    """Every one with its scales. A table that is multiplied by is [outputs, inputs], every other one [inputs,
    outputs]."""
    lengths = {t.name: int(_entry(t, "length")) for t in weights}
    for tensor in weights:
        if len(tensor.dims) == 2 and tensor.name in multiplied:
            inputs, outputs = reversed(tensor.dims) if tensor.name.endswith(".table") else tensor.dims
            yield Matrix(inputs, outputs, lengths[tensor.name] + lengths.get(f"{tensor.name}.scale", 0))


def _given(tensor: TensorInfo) -> Matrix:
    inputs, outputs = (int(size) for size in tensor.shape)
    return Matrix(inputs, outputs, _SIZES[tensor.dtype] * inputs * outputs)


def _cached(tensor: TensorInfo) -> int:
    """Bytes that this input keeps of one token, if it is a cache or its scales, or of one token of the source."""
    if c.LENGTH not in tensor.shape and not tensor.name.startswith(("cross_key_", "cross_value_")):
        return 0
    return _SIZES[tensor.dtype] * math.prod(size for size in tensor.shape if isinstance(size, int))


def _count(tensor: TensorInfo) -> int:
    return math.prod(int(size) for size in tensor.shape)


def _entry(tensor: onnx.TensorProto, key: str) -> str:
    return str(next(entry.value for entry in tensor.external_data if entry.key == key))
