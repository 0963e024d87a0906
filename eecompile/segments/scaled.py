"""Products of 8-bit numbers: what TensorRT multiplies in FP8 or INT8 where both rows and weights are quantised.

Weights have a scale for each output, rows one for the product. It comes from the largest inputs that the product had
over some texts (student/activations.py), so that it is a constant and a row does not depend on its pass; what is
larger is cut off. Where the type has a smoothing, rows are divided by its factors first (eight.py).
"""

from collections.abc import Sequence
from functools import cache as once

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from eecompile.segments.eight import Eight
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import channelwise
from eecompile.segments.weights import Values
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
SMOOTHING = ".smoothing"  # behind a matrix' name: what its rows are multiplied by, the factors' inverses


def scaled_product(
    g: GraphWriter, store: WeightStore, x: str, names: Sequence[str], eight: Eight, inputs: Float
) -> str:
    """x [.., in], rounded, times the named weights side by side: [.., sum of out]. inputs: largest magnitudes [in].

    A device's graph says it by QuantizeLinear and DequantizeLinear, which parsers know. The bundle's own has plain
    operators: ONNX Runtime makes constants of the weights when it opens the graph, so that a lone row goes through the
    kernel that several go through; and it would take dequantised floats of 8 bits for integers.
    """
    name, made = "+".join(names), once(lambda: channelwise(store, names, eight, inputs))
    values = g.weight(name, lambda: made()[0])
    scales = g.weight(f"{name}.scale", lambda: made()[1])
    largest = inputs.max()
    if eight.share:
        x = g.op("Mul", x, g.weight(name + SMOOTHING, lambda: Values.of(1 / made()[2])))
        largest = (inputs / made()[2]).max()
    scale = g.constant(eight.scale(largest), np.float32)
    if not g.form.quantizes:
        matrix = g.op("Mul", g.op("Cast", values, to=TensorProto.FLOAT), scales)
        return g.op("MatMul", g.op("Mul", _levels(g, g.op("Div", x, scale), eight), scale), matrix)
    zero = g.constant(0, tensor_dtype_to_np_dtype(eight.item_type))  # says the type; an attribute would need opset 21
    rows = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    return g.op("MatMul", rows, g.op("DequantizeLinear", values, scales, axis=1))


def _levels(g: GraphWriter, x: str, eight: Eight) -> str:
    """x as QuantizeLinear rounds and cuts it, in float32."""
    if eight.item_type == TensorProto.FLOAT8E4M3FN:
        return g.op("Cast", g.op("Cast", x, to=eight.item_type), to=TensorProto.FLOAT)
    low, high = (g.constant(bound, np.float32) for bound in (-eight.most - 1, eight.most))
    return g.op("Min", g.op("Max", g.op("Round", x), low), high)
