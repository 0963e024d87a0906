"""TensorScatter (opset 24) as ScatterND (opset 18).

A parser that knows no TensorScatter has no operator that updates a cache in place: ScatterND gives a new tensor. A pass
then reads and writes every cache as a whole, and the runtime exchanges the two buffers after it. The indices are made
once a graph for each number of key/value heads.
"""

from collections.abc import Callable

import onnx

from eecompile import contract as c
from eecompile.segments.graph import GraphWriter


def lower_scatter(g: GraphWriter, *, which: Callable[[str], bool]) -> bool:
    """Scatters of updates [B, KV, R, d] into caches [B, KV, T, d] at write_index [B]. which: says of a cache's type
    ("float16") whether its scatters are to be written so."""
    types = {info.name: info.dtype for info in g.inputs}
    heads = {info.name: info.shape[1] for info in g.inputs if c.LENGTH in info.shape}
    made: dict[int | str, str] = {}

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        if node.op_type != "TensorScatter" or not which(types[node.input[0]]):
            return False
        cache, update, start = node.input
        if heads[cache] not in made:
            made[heads[cache]] = _indices(g, update, start, heads[cache])
        g.op("ScatterND", cache, made[heads[cache]], update, named=node.output[0])
        return True

    return g.rewrite(rule)


def _indices(g: GraphWriter, update: str, start: str, heads: int | str) -> str:
    """int64 [B, KV, R, 3]: slot, head and place of each row of the update."""
    slots, rows = g.op("Shape", start), g.op("Shape", update, start=2, end=3)
    shape = g.op("Concat", slots, g.constant([heads]), rows, g.constant([1]), axis=0)
    slot = g.op("Unsqueeze", _range(g, slots), g.constant([1, 2, 3]))
    head = g.constant([[[[n]] for n in range(int(heads))]])
    row = g.op("Unsqueeze", _range(g, rows), g.constant([0, 1, 3]))
    place = g.op("Add", g.op("Unsqueeze", start, g.constant([1, 2, 3])), row)
    return g.op("Concat", *(g.op("Expand", part, shape) for part in (slot, head, place)), axis=-1)


def _range(g: GraphWriter, count: str) -> str:
    """0, 1, .. to one less than `count`, int64 [1]."""
    return g.op("Range", g.constant(0), g.op("Squeeze", count), g.constant(1))
