"""Products of 8-bit floats (E4M3): what TensorRT multiplies in FP8 where both rows and weights are quantised.

Weights have a scale for each output, rows one for the product. It comes from the largest input that the product had over
some texts (student/activations.py), so that it is a constant and a row does not depend on its pass; what is larger is
cut off. All scales are powers of two: a float of fewer bits loses nothing by that but its range, and every type that
engines compute in holds them.

Micikevicius et al., "FP8 Formats for Deep Learning" (2022), section 3, describes the format and such scales.
"""

from collections.abc import Sequence
from functools import cache as once

import numpy as np
from onnx import TensorProto

from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import channelwise, e4m3_scale
from eecompile.student.store import WeightStore


def scaled_product(g: GraphWriter, store: WeightStore, x: str, names: Sequence[str], largest: float) -> str:
    """x [.., in], rounded, times the named weights side by side: [.., sum of out]. largest: magnitude that fits.

    The weights are widened and scaled by plain operators, which ONNX Runtime does once, when it opens the graph: products
    of two dequantised 8-bit floats it takes for integer products, and a weight that is no constant goes through another
    kernel for a lone row than for several. Device graphs have DequantizeLinear instead (passes/dequantize.py).
    """
    name, made = "+".join(names), once(lambda: channelwise(store, names))
    values = g.weight(name, lambda: made()[0])
    scales = g.weight(f"{name}.scale", lambda: made()[1])
    matrix = g.op("Mul", g.op("Cast", values, to=TensorProto.FLOAT), scales)
    return g.op("MatMul", _rounded(g, x, largest), matrix)


def _rounded(g: GraphWriter, x: str, largest: float) -> str:
    scale = g.constant(e4m3_scale(np.float32(largest)), np.float32)
    levels = g.op("QuantizeLinear", x, scale, output_dtype=TensorProto.FLOAT8E4M3FN)
    return g.op("DequantizeLinear", levels, scale)
