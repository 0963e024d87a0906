"""Does every node of a graph belong to its dialect? Asked of each graph that is written for a device.

A parser on another machine would find out later, and say less. The tables hold what the writers use of what the parsers
take: onnx-tensorrt's list of supported operators at TensorRT 10.1 (`classic`), and that with the operators of opset 23
and 24 that its attention, rotary and KV-cache layers are made of (`modern`).
"""

from collections.abc import Container, Iterable, Mapping
from typing import Literal

import onnx
from onnx import TensorProto
from onnx.defs import SchemaError

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.segments.passes.flag import FLAG_TYPE

Dialect = Literal["modern", "classic"]
NEWEST: Mapping[Dialect, int] = {"modern": 24, "classic": 20}  # opset

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_BOOL = frozenset({TensorProto.BOOL})
_QUANTISED = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN})


def _table(groups: Iterable[tuple[str, Iterable[int]]]) -> Mapping[str, frozenset[int]]:
    return {name: frozenset(types) for names, types in groups for name in names.split()}


_CLASSIC = _table([
    ("Exp Gelu Gemm LayerNormalization Log MatMul Pow Round Sigmoid Softmax Sqrt Tanh", _FLOATS),
    ("Abs Add Div Greater Less LessOrEqual Max Min Mul Pad Range", _FLOATS | _INTEGERS),
    ("ReduceMax ReduceMean ReduceSum Relu ScatterND Sub TopK", _FLOATS | _INTEGERS),
    ("Cast Concat Expand Gather GatherElements Identity Reshape Shape Slice Split Squeeze Transpose Unsqueeze Where",
     _FLOATS | _INTEGERS | _BOOL),
    ("And", _BOOL),
    ("QuantizeLinear", _FLOATS),
    ("DequantizeLinear", {TensorProto.INT8}),
])  # fmt: skip
_NEWER = _table([
    ("Attention RMSNormalization RotaryEmbedding TensorScatter", _FLOATS),
    ("DequantizeLinear", _QUANTISED),
])  # fmt: skip
OPERATORS: Mapping[Dialect, Mapping[str, frozenset[int]]] = {"classic": _CLASSIC, "modern": {**_CLASSIC, **_NEWER}}
# inputs that have to be constants, since parsers read them when they build
_CONSTANT = {"Squeeze": 1, "Unsqueeze": 1, "ReduceMax": 1, "ReduceMean": 1, "ReduceSum": 1, "Slice": 3, "TopK": 1}
_FORBIDDEN = {("ScatterND", "reduction"), ("Attention", "softcap"), ("Attention", "is_causal")}
_MEND = "this is a fault of the graph writer, not of the model: build for another target and report it"


def check_dialect(model: onnx.ModelProto, *, dialect: Dialect) -> None:
    """Raise UsageError naming the first node that is not of the dialect: by domain, operator, version, attribute, type,
    or because an input has to be a constant and is not."""
    opset = next(o.version for o in model.opset_import if not o.domain)
    if opset > NEWEST[dialect]:
        raise UsageError(f"opset {opset} is newer than the dialect {dialect}", where=model.graph.name, mend=_MEND)
    types = _types(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        reason = _fault(node, opset, dialect, types, constants)
        if reason is not None:
            what = f"node {node.name}, operator {node.op_type}: {reason}"
            raise UsageError(what, where=model.graph.name, mend=_MEND)
    for function in model.functions:
        for node in function.node:
            if node.op_type not in {*OPERATORS[dialect], "Constant"}:
                what = f"node {node.op_type} of the function {function.name} is not of the dialect {dialect}"
                raise UsageError(what, where=model.graph.name, mend=_MEND)


def _fault(
    node: onnx.NodeProto, opset: int, dialect: Dialect, types: Mapping[str, int], constants: Container[str]
) -> str | None:
    if (node.domain, node.op_type) == (c.DECISION_DOMAIN, c.DECISION_OP):
        return None
    if node.domain:
        return f"its domain {node.domain} is not standard"
    if node.op_type not in OPERATORS[dialect]:
        return f"not an operator of the dialect {dialect}"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except SchemaError:
        return f"opset {opset} has no such operator"
    for attribute in node.attribute:
        if attribute.name not in schema.attributes or (node.op_type, attribute.name) in _FORBIDDEN:
            return f"the attribute {attribute.name} is not for this dialect"
    index = _CONSTANT.get(node.op_type)
    if index is not None and len(node.input) > index and node.input[index] not in constants:
        return f"its input {node.input[index]} has to be a constant"
    data = node.input[1 if node.op_type == "Where" else 0]
    if data not in types:
        return f"the type of {data} cannot be told"
    if types[data] not in OPERATORS[dialect][node.op_type]:
        return f"{data} is of type {TensorProto.DataType.Name(types[data])}"
    return None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The types of a model's values, as onnx infers them from its nodes. Raises UsageError where they disagree."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except Exception as e:  # onnx raises its own unexported type
        raise UsageError(f"not a valid graph: {e}", where=model.graph.name, mend=_MEND) from e
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    known = {node.output[-1]: int(FLAG_TYPE) for node in model.graph.node if node.op_type == c.DECISION_OP}
    known |= {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in inferred.initializer}
