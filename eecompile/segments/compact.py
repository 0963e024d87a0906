"""Caches that tokens which stopped have left no row in: the rule `selected`.

Bae et al., "Mixture-of-Recursions" (2025), section 2.2, recursion-wise caching: a step keeps keys and values of the
tokens that came as deep as that, and attends to those. A row's place in such a cache is not its position. Rows stay in
order, so that a row may look at all places up to its own; a window has to go by the positions, which are kept beside
the keys.
"""

from eecompile import contract as c
from eecompile.segments.graph import GraphWriter


def cache_rows(g: GraphWriter) -> str:
    """The places of the pass's rows in the caches, int64 [B, R]."""
    rows = g.op("Squeeze", g.op("Shape", c.POSITIONS, start=1, end=2))
    numbers = g.op("Range", g.constant(0), rows, g.constant(1))
    return g.op("Add", g.op("Unsqueeze", c.WRITE_INDEX, g.constant([1])), numbers)


def write_positions(g: GraphWriter) -> str:
    """Scatter the pass's positions into those of the caches' rows, in place; returns all of them, [B, 1, 1, T]."""
    out, shape = c.updated(c.KEY_POSITIONS), ("B", 1, c.LENGTH, 1)
    g.input(c.KEY_POSITIONS, "int64", *shape)
    update = g.op("Unsqueeze", c.POSITIONS, g.constant([1, 3]))
    g.op("TensorScatter", c.KEY_POSITIONS, update, c.WRITE_INDEX, named=out, axis=2)
    g.output(out, out, "int64", *shape)
    return g.op("Transpose", out, perm=[0, 1, 3, 2])
