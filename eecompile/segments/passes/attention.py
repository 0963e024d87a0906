"""Attention (opset 23) as two products around a softmax.

The scale goes into the queries, before the product: of the three values it could be put on they are the smallest, and
scores that float16 cannot hold never come to be.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from eecompile.segments.graph import GraphWriter


def lower_attention(g: GraphWriter, *, head_dim: int, which: Callable[[onnx.NodeProto], bool]) -> bool:
    """Attention of q [B, H, R, d] over keys and values [B, H, T, d] with a mask that is added to the scores; heads are
    as many on both sides, since the writer makes rows of those that share keys. which: nodes to write so."""

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        if node.op_type != "Attention" or not which(node):
            return False
        how = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        q, keys, values, mask = node.input
        bound = how.get("softcap", 0.0)
        scale = how.get("scale", head_dim**-0.5) / (bound or 1.0)
        scaled = q if scale == 1 else g.op("Mul", q, g.constant(scale, np.float32))
        scores = g.op("MatMul", scaled, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        if bound:
            scores = g.op("Mul", g.op("Tanh", scores), g.constant(bound, np.float32))
        shares = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        g.op("MatMul", shares, values, named=node.output[0])
        return True

    return g.rewrite(rule)


def every(node: onnx.NodeProto) -> bool:
    """All of them."""
    return True


def has_softcap(node: onnx.NodeProto) -> bool:
    """Those that bound their scores."""
    return any(attribute.name == "softcap" for attribute in node.attribute)
