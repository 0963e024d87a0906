"""Weights of 8 bits by DequantizeLinear, as parsers read them; the bundle's own graphs widen and scale them."""

import onnx
from onnx import TensorProto

from eecompile.segments.graph import GraphWriter


def dequantize_weights(g: GraphWriter) -> bool:
    """Make each Cast of an 8-bit weight [in, out] and the Mul by its scales [out] behind it one DequantizeLinear."""
    widened: dict[str, str] = {}

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        source = g.initializers.get(node.input[0]) if node.op_type == "Cast" else None
        if source is not None and source.data_type in (TensorProto.FLOAT8E4M3FN, TensorProto.INT8):
            widened[node.output[0]] = node.input[0]
            return True
        if node.op_type == "Mul" and node.input[0] in widened:
            values, scales = widened[node.input[0]], node.input[1]
            g.op("DequantizeLinear", values, scales, named=node.output[0], axis=1)
            return True
        return False

    return g.rewrite(rule)
