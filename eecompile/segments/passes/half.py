"""Compute in a 16-bit float: products and attention in it, sums over many numbers in float32.

The rules are those of automatic mixed precision (Micikevicius et al. 2018, section 3), applied once, when a graph is
written, so that an engine may be strongly typed:

- products with weights, attention and rotation take and give the small type; rows that are quantised for a product are
  quantised from the type that they have, and dequantised into the small one;
- norms, means and the exit decision take and give float32;
- everything else is computed in float32 if one of its inputs is float32, constants aside, which take any type.

So the residual stream stays float32, as it is at the graphs' boundaries: only what a layer adds to it is rounded. Cheap
gates, whose weights are inputs, stay float32 too. Weights and caches that are kept in a small type are read as they
are: the casts that widened them are dropped.
"""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from eecompile import contract as c
from eecompile.schema import ComputeType
from eecompile.segments.graph import GraphWriter, element_type

PRODUCTS = {"MatMul", "Gemm"}
SMALL = {"Attention", "RotaryEmbedding"}
SCATTERS = {"TensorScatter", "ScatterND"}
WIDE = {"RMSNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Exp", "Log", c.DECISION_OP}
INT64 = {"Shape", "Size"}
BOOL = {"LessOrEqual", "Less", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Not"}
FLOAT = int(TensorProto.FLOAT)


def compute_in(g: GraphWriter, *, compute: ComputeType) -> bool:
    """Rewrite a float32 graph to compute in `compute`; its inputs and outputs keep their types.

    Raises UsageError where a weight is too large for the type.
    """
    if compute == "float32":
        return False
    half = _Half(g, element_type(compute))
    modified = g.rewrite(half.rule)
    return g.prune() or modified


@dataclass
class _Half:
    """The types of a graph's values as it is rewritten. small: the ONNX type to compute in. casts: a value in another
    type. sources: what a value was cast from. constants: values that depend on initialisers alone. stored: caches."""

    g: GraphWriter
    small: int
    types: dict[str, int] = field(default_factory=dict)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.types |= {info.name: element_type(info.dtype) for info in self.g.inputs}
        self.outputs = {info.name: element_type(info.dtype) for info in self.g.outputs}

    def rule(self, g: GraphWriter, node: onnx.NodeProto) -> bool:
        """Write `node` again, on inputs of the types that it is to have."""
        for name in node.input:
            if name in g.initializers and name not in self.types:
                self.types[name] = g.initializers[name].data_type
                self.constants.add(name)
        if node.op_type == "Cast":
            self._cast(node)
            return True
        if node.op_type == "Identity" and self.types[node.input[0]] != self.outputs[node.output[0]]:
            source, name = node.input[0], node.output[0]
            g.op("Cast", self._known(source), named=name, to=self.outputs[name])
            return True
        wanted = self._wanted(node)
        inputs = [self._as(name, wanted) if self._is_float(name) else self._known(name) for name in node.input]
        if all(name in self.constants for name in node.input if name):
            self.constants |= set(node.output)
        if node.op_type in SCATTERS:
            self.stored |= set(node.output)
        written = onnx.NodeProto()
        written.CopyFrom(node)
        del written.input[:]
        written.input.extend(inputs)
        self._add(written)
        return True

    def _known(self, name: str) -> str:
        """What a value is called, its cast to the type that it has being dropped."""
        return self.casts.get((name, self.types.get(name, 0)), name)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) in (FLOAT, self.small)

    def _wanted(self, node: onnx.NodeProto) -> int:
        """The type of the node's floating-point inputs."""
        floats = [name for name in node.input if self._is_float(name)]
        known = {self.types[name] for name in floats if name not in self.constants}
        if node.op_type in WIDE:
            return FLOAT
        if node.op_type in PRODUCTS:
            weighted = any(name in self.constants for name in floats)
            return self.small if weighted or self.small in known else FLOAT
        return FLOAT if FLOAT in known and node.op_type not in SMALL else self.small

    def _cast(self, node: onnx.NodeProto) -> None:
        """A cast of the graph's own: widening weights and caches is for the type that is computed in."""
        source, name, target = node.input[0], node.output[0], int(helper.get_attribute_value(node.attribute[0]))
        if target == FLOAT and source in self.constants | self.stored:
            target = self.small
        if source in self.constants:
            self.constants.add(name)
        self.types[name], self.sources[name] = target, source
        if self.types[source] == target and name not in self.outputs:
            self.casts[name, target] = self._known(source)
            return
        self.g.op("Cast", self._known(source), named=name, to=target)

    def _as(self, name: str, wanted: int) -> str:
        """A floating-point value in the type `wanted`."""
        if (name, wanted) in self.casts:
            return self.casts[name, wanted]
        if self.types[name] == wanted:
            return name
        if name in self.g.initializers and wanted == self.small:
            made = _narrowed(self.g, name, wanted)
        elif self.types.get(self.sources.get(name, "")) == wanted:
            made = self._as(self.sources[name], wanted)
        else:
            made = self.g.op("Cast", self._known(self.sources.get(name, name)), to=wanted)
        self.casts[name, wanted], self.types[made] = made, wanted
        if name in self.constants:
            self.constants.add(made)
        return made

    def _add(self, node: onnx.NodeProto) -> None:
        """Add a node; where it gives a graph output in another type, a cast behind it gives the output."""
        behind: list[tuple[str, str]] = []
        for i, (name, type_) in enumerate(zip(node.output, self._given(node), strict=True)):
            self.types[name] = self.outputs.get(name, type_)
            if self.types[name] != type_:
                node.output[i] = f"{name}_inside"
                self.types[node.output[i]], self.casts[name, type_] = type_, node.output[i]
                behind.append((node.output[i], name))
        self.g.add(node)
        for inner, name in behind:
            self.g.op("Cast", inner, named=name, to=self.types[name])

    def _given(self, node: onnx.NodeProto) -> list[int]:
        """The types of a node's outputs."""
        if node.op_type == c.DECISION_OP:
            return [TensorProto.INT64, FLOAT, FLOAT, FLOAT, TensorProto.BOOL]
        if node.op_type in INT64:
            return [TensorProto.INT64]
        if node.op_type in BOOL:
            return [TensorProto.BOOL]
        if node.op_type == "QuantizeLinear":
            return [self.types[node.input[2]]]
        first = self.types[node.input[1 if node.op_type in ("Where", "DequantizeLinear") else 0]]
        return [first, TensorProto.INT64] if node.op_type == "TopK" else [first] * len(node.output)


def _narrowed(g: GraphWriter, name: str, wanted: int) -> str:
    """A float32 initialiser in a small type. Small ones in the graph, which may stand for no number at all, as a mask
    does, are cut to half of what the type holds, so that a sum with them stays finite; weights have to fit."""
    tensor = g.initializers[name]
    if tensor.data_location == TensorProto.EXTERNAL:
        return g.narrowed(name, wanted)
    dtype = helper.tensor_dtype_to_np_dtype(wanted)
    most = float(ml_dtypes.finfo(dtype).max) / 2
    return g.constant(np.clip(numpy_helper.to_array(tensor), -most, most), dtype)
