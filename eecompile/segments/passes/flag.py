"""The exit flag cast behind the decision node, since no TensorRT plugin gives a bool: the plugin's flag is an int32."""

import onnx
from onnx import TensorProto

from eecompile import contract as c
from eecompile.segments.graph import GraphWriter

FLAG_TYPE = TensorProto.INT32  # what the plugin gives; of the node's function, the flag is a bool and the cast nothing


def cast_flag(g: GraphWriter) -> bool:
    """Make the flag of every exit decision a bool, whoever computes the node. The flag keeps its name."""

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        if (node.domain, node.op_type) != (c.DECISION_DOMAIN, c.DECISION_OP):
            return False
        flag = node.output[-1]
        node.output[-1] = f"{flag}_number"
        g.add(node)
        g.op("Cast", node.output[-1], named=flag, to=TensorProto.BOOL)
        return True

    return g.rewrite(rule)
