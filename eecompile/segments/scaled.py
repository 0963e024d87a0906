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

    The weights are widened and scaled by plain operators, which ONNX Runtime does once, when it opens the graph:
    products of two dequantised 8-bit floats it takes for integer products, and a weight that is no constant goes
    through another kernel for a lone row than for several. Device graphs have DequantizeLinear instead
    (passes/dequantize.py).
    """
    name, made = "+".join(names), once(lambda: channelwise(store, names, eight, inputs))
    values = g.weight(name, lambda: made()[0])
    scales = g.weight(f"{name}.scale", lambda: made()[1])
    matrix = g.op("Mul", g.op("Cast", values, to=TensorProto.FLOAT), scales)
    largest = inputs.max()
    if eight.share:
        x = g.op("Mul", x, g.weight(name + SMOOTHING, lambda: Values.of(1 / made()[2])))
        largest = (inputs / made()[2]).max()
    scale = g.constant(eight.scale(largest), np.float32)
    zero = g.constant(0, tensor_dtype_to_np_dtype(eight.item_type))  # says the type; an attribute would need opset 21
    levels = g.op("QuantizeLinear", x, scale, zero)
    return g.op("MatMul", g.op("DequantizeLinear", levels, scale, zero), matrix)
