"""Keys and values in a cache of float32, float16 or int8.

A row is rounded on its way into the cache and read back from there by everyone, itself included, so that what it sees
does not depend on the pass it is in. int8 has a scale for each row and head: the largest magnitude over 127. Rows that
are zero stay zero; a NaN or infinity makes the scale NaN, and shows.
"""

import numpy as np
import onnx

from eecompile import contract as c
from eecompile.schema import Dtype
from eecompile.segments.graph import GraphWriter

_LEAST = 1e-30  # in place of a scale of zero, which nothing can be divided by
_LEVELS = 127.0


def write_cache(g: GraphWriter, type_: str, kind: str, update: str, cache: int, sizes: tuple[int, int]) -> str:
    """Scatter update [B, KV, R, d] into the cache of `type_` [B, KV, T, d] at the write index, in place.

    kind: "key" or "value". sizes: KV, d. Returns the whole cache in float32.
    """
    name = c.cache_name(kind, cache)
    if type_ == "fp32":
        return _scatter(g, name, update, "float32", *sizes)
    if type_ == "fp16":
        narrow = g.op("Cast", update, to=onnx.TensorProto.FLOAT16)
        return g.op("Cast", _scatter(g, name, narrow, "float16", *sizes), to=onnx.TensorProto.FLOAT)
    axis = g.constant([3])
    largest = g.op("ReduceMax", g.op("Abs", update), axis, keepdims=1)
    # an engine's maximum may pass over NaN; a sum does not
    fault = g.op("ReduceSum", g.op("Mul", update, g.constant(0.0, np.float32)), axis, keepdims=1)
    scale = g.op("Add", g.op("Div", largest, g.constant(_LEVELS, np.float32)), fault)
    levels = g.op("Round", g.op("Div", update, g.op("Max", scale, g.constant(_LEAST, np.float32))))
    kept = _scatter(g, name, g.op("Cast", levels, to=onnx.TensorProto.INT8), "int8", *sizes)
    scales = _scatter(g, c.scale_name(kind, cache), scale, "float32", sizes[0], 1)
    return g.op("Mul", g.op("Cast", kept, to=onnx.TensorProto.FLOAT), scales)


def _scatter(g: GraphWriter, name: str, update: str, dtype: Dtype, kv_heads: int, size: int) -> str:
    out = c.updated(name)
    g.input(name, dtype, "B", kv_heads, c.LENGTH, size)
    g.op("TensorScatter", name, update, c.WRITE_INDEX, named=out, axis=2)
    g.output(out, out, dtype, "B", kv_heads, c.LENGTH, size)
    return out
