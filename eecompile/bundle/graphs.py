"""What a reader checks of the ONNX graphs before an engine sees them.

The protobuf is parsed without its external data; every tensor has to lie in a listed file of the bundle.
"""

import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.bundle.paths import name_fault
from eecompile.bundle.strict import fault, read_regular
from eecompile.schema import GraphInfo, TensorInfo

DOMAINS = ("", "ai.onnx", "com.microsoft", c.DECISION_DOMAIN)
MAX_DIMENSION = 1 << 32
_DTYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
_DTYPES |= {"int8": onnx.TensorProto.INT8, "int64": onnx.TensorProto.INT64, "bool": onnx.TensorProto.BOOL}
_NAMES = {number: name for name, number in _DTYPES.items()}
_BITS = {"FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8}
_BITS |= {"FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "BFLOAT16": 16, "UINT4": 4, "INT4": 4}
_BITS |= {"FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "FLOAT4E2M1": 4}
_BIT_SIZES: dict[int, int] = {onnx.TensorProto.DataType.Value(name): bits for name, bits in _BITS.items()}
_NUMBER = re.compile(r"[0-9]{1,15}")


def check_graphs(root: Path, manifest: Manifest) -> None:
    """Check every ONNX file of the core: its operator domains and where its tensors lie, and the interface of those
    that the manifest describes.

    Raises IntegrityError naming the graph.
    """
    sizes = {name: info.bytes for name, info in manifest.files.items()}
    declared = _declared(manifest)
    for info in declared:
        if info.path not in sizes:
            raise fault(f"the graph {info.path} is not among the manifest's files", root / c.MANIFEST)
    check_model_sizes(root, manifest)
    others = {name for name in sizes if name.endswith(".onnx")} - {info.path for info in declared}
    for path, described in [(i.path, i) for i in declared] + [(name, None) for name in sorted(others)]:
        try:
            _check_graph(root / path, path, described, sizes)
        except UnicodeDecodeError as e:
            raise fault("not an ONNX model: a name in it is not UTF-8", root / path) from e


def check_model_sizes(root: Path, manifest: Manifest) -> None:
    """Check that sizes in the described interfaces are the model's (contract.py). Raises IntegrityError."""
    model = manifest.model
    cache = (-1, model.kv_heads, model.context + manifest.slack, model.head_dim)
    scale = (*cache[:3], 1)
    cross = (-1, model.heads, -1, model.head_dim)
    positions = (-1, 1, cache[2], 1)
    known: dict[str, tuple[int, ...]] = dict.fromkeys((c.HIDDEN, c.HIDDEN_OUT, c.EXIT_HIDDEN), (-1, model.hidden))
    known |= {c.THRESHOLDS: (-1, 3), c.GATE_W1: (model.hidden, -1)}
    known |= {c.PREVIOUS: (-1, model.hidden), f"{c.ROUTER}_w1": (model.hidden, -1)}
    known |= dict.fromkeys((c.KEY_POSITIONS, c.updated(c.KEY_POSITIONS)), positions)
    sets = [manifest.graphs, *([manifest.device.graphs] if manifest.device is not None else [])]
    narrow = {
        graph.path: head.rows(model.vocab)
        for graphs in sets
        for graph, head in zip(graphs.heads, manifest.heads, strict=True)
    }
    for info in _declared(manifest):
        known[c.LOGITS] = (-1, narrow.get(info.path, manifest.classes))
        for tensor in (*info.inputs, *info.outputs):
            is_cache = tensor.name.startswith(("key_cache_", "value_cache_"))
            is_scale = tensor.name.startswith(("key_scale_", "value_scale_"))
            is_cross = tensor.name.startswith(("cross_key_", "cross_value_"))
            kinds = ((is_cache, cache), (is_scale, scale), (is_cross, cross))
            sizes = next((size for fits, size in kinds if fits), known.get(tensor.name, ()))
            pairs = zip(reversed(tensor.shape), reversed(sizes), strict=False)
            if any(isinstance(have, int) and size not in (-1, have) for have, size in pairs):
                what = f"{info.path}: {tensor.name} is {tensor.shape}, which is not the model's size"
                raise fault(what, root / c.MANIFEST)


def tensor_bytes(dims: list[int], dtype: int) -> int | None:
    """Bytes of a dense tensor of ONNX element type `dtype` (4-bit ones packed), or None if that cannot be told."""
    bits = _BIT_SIZES.get(dtype)
    if bits is None or any(not 0 <= d <= MAX_DIMENSION for d in dims):
        return None
    return (math.prod(dims) * bits + 7) // 8


def _declared(manifest: Manifest) -> list[GraphInfo]:
    return [*manifest.graphs.all(), *(manifest.device.graphs.all() if manifest.device is not None else [])]


def _check_graph(path: Path, name: str, info: GraphInfo | None, sizes: Mapping[str, int]) -> None:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(read_regular(path, c.MAX_GRAPH_BYTES))
    except DecodeError as e:
        raise fault("not an ONNX model: the protobuf cannot be parsed", path) from e
    if not model.HasField("graph") or len(model.training_info):
        raise fault("not an ONNX model for inference: no graph, or training information in it", path)
    if info is not None:
        _check_interface(path, "input", info.inputs, model.graph.input)
        _check_interface(path, "output", info.outputs, model.graph.output)
    for function in model.functions:
        if function.domain != c.DECISION_DOMAIN:
            raise fault(f"a function of the domain {ascii(function.domain)[:80]}, not of this format", path)
    for tensor in _walk(path, model):
        _check_tensor(path, posixpath.dirname(name), tensor, sizes)


def _check_interface(path: Path, kind: str, declared: list[TensorInfo], found: Any) -> None:
    names, expected = [str(v.name) for v in found], [t.name for t in declared]
    if names != expected:
        raise fault(f"its {kind}s are {_few(names)}; the manifest says {_few(expected)}", path)
    for info, value in zip(declared, found, strict=True):
        have, said = _describe(value), f"{info.dtype} {info.shape}"
        if have != said:
            raise fault(f"its {kind} {info.name} is {have}; the manifest says {said}", path)


def _few(names: list[str]) -> str:
    return ascii(names[:8])[:400] + (" and more" if len(names) > 8 else "")


def _describe(value: Any) -> str:
    tensor = value.type.tensor_type
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim if tensor.HasField("shape") else ():
        kind = dim.WhichOneof("value")
        dims.append(getattr(dim, kind) if kind else None)
    shape = dims if tensor.HasField("shape") else "of no declared shape"
    return f"{_NAMES.get(tensor.elem_type, f'of ONNX type {tensor.elem_type}')} {shape}"


def _walk(path: Path, model: Any) -> Iterator[Any]:
    """Every dense tensor of the model, subgraphs and functions included; checks node domains on the way."""
    graphs, nodes, attributes = [model.graph], [], [a for f in model.functions for a in f.attribute_proto]
    nodes += [node for f in model.functions for node in f.node]
    while graphs or nodes or attributes:
        if attributes:
            attribute = attributes.pop()
            if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
                raise fault("a sparse tensor, which this format does not use", path)
            graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
            yield from [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors
        elif nodes:
            node = nodes.pop()
            if node.domain not in DOMAINS:
                raise fault(f"an operator of the domain {ascii(node.domain)[:80]}, not one of {DOMAINS}", path)
            attributes += node.attribute
        else:
            graph = graphs.pop()
            if len(graph.sparse_initializer):
                raise fault("a sparse tensor, which this format does not use", path)
            yield from graph.initializer
            nodes += graph.node


def _check_tensor(path: Path, folder: str, tensor: Any, sizes: Mapping[str, int]) -> None:
    where = f"its tensor {ascii(tensor.name)[:80]}"
    expected = tensor_bytes(list(tensor.dims), tensor.data_type)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if expected is None:
        raise fault(f"{where} has the shape {list(tensor.dims)[:8]} and type {tensor.data_type}", path)
    if external:
        _check_external(path, folder, where, tensor.external_data, expected, sizes)
    elif len(tensor.external_data):
        raise fault(f"{where} has external data but does not say so", path)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
        raise fault(f"{where} holds {len(tensor.raw_data)} bytes instead of {expected}", path)


def _check_external(path: Path, folder: str, where: str, entries: Any, expected: int, sizes: Mapping[str, int]) -> None:
    fields = {str(e.key): str(e.value) for e in entries}
    if len(fields) != len(entries) or not set(fields) <= {"location", "offset", "length", "checksum"}:
        raise fault(f"{where} describes its external data with {_few([e.key for e in entries])}", path)
    location = fields.get("location", "")
    if (reason := name_fault(location)) is not None:
        raise fault(f"{where} lies at {ascii(location)[:200]}: {reason}", path)
    name = posixpath.join(folder, location)
    if name not in sizes:
        raise fault(f"{where} lies in {name}, which is not among the manifest's files", path)
    offset, length = (_number(path, where, fields.get(k, d)) for k, d in (("offset", "0"), ("length", str(expected))))
    if length != expected:
        raise fault(f"{where} takes {length} bytes where its shape needs {expected}", path)
    if offset + length > sizes[name]:
        raise fault(f"{where} ends at byte {offset + length} of {name}, which has {sizes[name]}", path)


def _number(path: Path, where: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise fault(f"{where} has the offset or length {ascii(text)[:40]}", path)
    return int(text)
