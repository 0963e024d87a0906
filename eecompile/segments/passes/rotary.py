"""RotaryEmbedding (opset 23) as sums of products: x cos + turned(x) sin (Su et al. 2021, equation 34).

The rows of both tables are gathered once a graph and spread over a whole head, so that a layer's rotation is a split, a
concatenation, two products and a sum, whatever the number of heads.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from eecompile.segments.graph import GraphWriter

_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Turn:
    """Cosines and signed sines [B, 1, R, 2 half] of a pass's positions, a factor for each dimension."""

    cos: str
    sin: str
    half: int
    interleaved: bool


def lower_rotary(g: GraphWriter) -> bool:
    """Rotations of x [B, heads, R, d] by positions [B, R]: of whole heads or of their first dimensions, in halves or
    interleaved."""
    turns: dict[tuple[str, ...], Turn] = {}

    def rule(g: GraphWriter, node: onnx.NodeProto) -> bool:
        if node.op_type != "RotaryEmbedding":
            return False
        how = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        x, *tables = node.input
        interleaved, key = bool(how.get("interleaved", 0)), tuple(tables)
        if key not in turns:  # a table is of one kind of rotation
            turns[key] = _turn(g, *tables, interleaved=interleaved)
        if "rotary_embedding_dim" not in how:
            _rotate(g, x, turns[key], node.output[0])
            return True
        end, axis = g.constant([2 * turns[key].half]), g.constant([-1])
        first = _rotate(g, g.op("Slice", x, g.constant([0]), end, axis), turns[key])
        g.op("Concat", first, g.op("Slice", x, end, g.constant([_END]), axis), named=node.output[0], axis=-1)
        return True

    return g.rewrite(rule)


def _turn(g: GraphWriter, cos: str, sin: str, positions: str, *, interleaved: bool) -> Turn:
    """Gather the rows of tables [S, half], and spread each factor over the two dimensions that turn together."""
    half = g.initializers[cos].dims[1]
    numbers = np.arange(2 * half)
    places = g.constant(numbers // 2 if interleaved else numbers % half)
    signs = np.where(numbers % 2 if interleaved else numbers >= half, 1, -1)
    wide = [g.op("Gather", g.op("Gather", table, positions, axis=0), places, axis=-1) for table in (cos, sin)]
    wide[1] = g.op("Mul", wide[1], g.constant(signs, np.float32))
    rows = [g.op("Unsqueeze", table, g.constant([1])) for table in wide]
    return Turn(rows[0], rows[1], half, interleaved)


def _rotate(g: GraphWriter, x: str, turn: Turn, named: str = "") -> str:
    if turn.interleaved:
        other = g.op("Gather", x, g.constant(np.arange(2 * turn.half) ^ 1), axis=-1)
    else:
        first, second = g.ops("Split", 2, x, g.constant([turn.half] * 2), axis=-1)
        other = g.op("Concat", second, first, axis=-1)
    return g.op("Add", g.op("Mul", x, turn.cos), g.op("Mul", other, turn.sin), named=named)
