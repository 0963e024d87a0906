"""The exit decision as a model-local ONNX function: one node, three implementations of one arithmetic.

ONNX Runtime and TensorRT-RTX inline the body below; TensorRT takes the plugin of the same name. Thresholds are an
input, so that policy stays data. Comparisons are strict and written so that NaN continues: `value > threshold` is false
for NaN, and a row with a NaN or +inf logit has no finite probability.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eecompile import contract as c
from eecompile.segments.graph import OPSET, GraphWriter


def exit_decision(
    g: GraphWriter, logits: str, thresholds: str, *, token: str = c.TOKEN
) -> tuple[str, str, str, str, str]:
    """Add the decision node. logits [N, V], thresholds [N, 3] (max_prob above, margin above, entropy below).

    token: what to call its first output. Returns token, max_prob, margin, entropy (nats) and exit_flag, each [N].
    """
    if not g.functions:
        g.functions.append(decision_function(g.form.opset))
    best, max_prob, margin, entropy, flag = g.ops(
        c.DECISION_OP,
        5,
        logits,
        thresholds,
        named=(token, c.MAX_PROB, c.MARGIN, c.ENTROPY, c.EXIT_FLAG),
        domain=c.DECISION_DOMAIN,
        plugin_version=c.DECISION_VERSION,
        plugin_namespace="",
    )
    return best, max_prob, margin, entropy, flag


def decision_function(opset: int = OPSET) -> onnx.FunctionProto:
    """The function of the decision node, for a model of that opset."""
    n = helper.make_node
    column = ["max_prob_bound", "margin_bound", "entropy_bound"]
    nodes = [
        _constant("two", [2]), _constant("one", [1]), _constant("zero", [0]), _constant("columns", [1, 1, 1]),
        n("TopK", ["logits", "two"], ["top", "top_index"], axis=-1),
        n("Gather", ["top_index", "first"], ["token"], axis=1),
        n("Slice", ["top", "zero", "one", "one"], ["peak"]),
        n("Sub", ["logits", "peak"], ["shifted"]),
        n("Exp", ["shifted"], ["weights"]),
        n("ReduceSum", ["weights", "one"], ["total"], keepdims=1),
        n("Mul", ["weights", "shifted"], ["weighted"]),
        n("ReduceSum", ["weighted", "one"], ["moment"], keepdims=1),
        n("Log", ["total"], ["log_total"]),
        n("Div", ["moment", "total"], ["mean_shift"]),
        n("Sub", ["log_total", "mean_shift"], ["entropy_column"]),
        n("Sub", ["top", "peak"], ["top_shift"]),
        n("Exp", ["top_shift"], ["top_weight"]),
        n("Div", ["top_weight", "total"], ["top_probability"]),
        n("Gather", ["top_probability", "first"], ["max_prob"], axis=1),
        n("Gather", ["top_probability", "second"], ["runner_up"], axis=1),
        n("Sub", ["max_prob", "runner_up"], ["margin"]),
        n("Squeeze", ["entropy_column", "one"], ["entropy"]),
        n("Split", ["thresholds", "columns"], [f"{name}_column" for name in column], axis=1),
        *(n("Squeeze", [f"{name}_column", "one"], [name]) for name in column),
        n("Greater", ["max_prob", "max_prob_bound"], ["sure"]),
        n("Greater", ["margin", "margin_bound"], ["clear"]),
        n("Less", ["entropy", "entropy_bound"], ["sharp"]),
        n("And", ["sure", "clear"], ["sure_and_clear"]),
        n("And", ["sure_and_clear", "sharp"], ["exit_flag"]),
    ]  # fmt: skip
    nodes[4:4] = [_scalar("first", 0), _scalar("second", 1)]
    return helper.make_function(
        c.DECISION_DOMAIN,
        c.DECISION_OP,
        ["logits", "thresholds"],
        ["token", "max_prob", "margin", "entropy", "exit_flag"],
        nodes,
        [helper.make_opsetid("", opset)],
        ["plugin_version", "plugin_namespace"],
    )


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64), name))


def _scalar(name: str, value: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.int64), name))
