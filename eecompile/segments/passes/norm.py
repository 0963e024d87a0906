"""RMSNormalization (opset 23) as the six operators that say the same."""

import numpy as np
import onnx
from onnx import helper

from eecompile.segments.graph import GraphWriter


def lower_norms(g: GraphWriter) -> bool:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last dimension, in the form that parsers know to be one norm."""

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        if node.op_type != "RMSNormalization":
            return False
        x, scale = node.input
        epsilon = {a.name: helper.get_attribute_value(a) for a in node.attribute}["epsilon"]
        mean = g.op("ReduceMean", g.op("Pow", x, g.constant(2.0, np.float32)), g.constant([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.constant(epsilon, np.float32)))
        g.op("Mul", g.op("Div", x, root), scale, named=node.output[0])
        return True

    return g.rewrite(rule)
