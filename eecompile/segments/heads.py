"""Heads that cost a fraction of the model's: a product of two thin matrices, or some of the head's own rows.

One pass of a full head reads as much as several layers do (eight of SmolLM2's thirty), which an early exit has to earn
back before it saves anything. A small head takes the place of the full one's product; what the model does to the
product to make logits of it (a scale, a bias, a bound) follows as it does there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.outer import decide, finish_logits, small_head_file
from eecompile.shapes import HeadShape
from eecompile.student.exits import StudentExits
from eecompile.student.store import TensorLocation, WeightStore


def write_small_head(g: GraphWriter, d: DecoderWriter, exits: StudentExits, head: HeadShape) -> None:
    """As `write_head`, for a small head: logits [N, V], or [N, its tokens] of a shortlist; TOKEN is a token of all."""
    g.input(c.HIDDEN, "float32", "N", d.spec.hidden)
    g.input(c.THRESHOLDS, "float32", "N", 3)
    logits = small_logits(g, d, exits, head, c.HIDDEN)
    decide(g, logits, head.rows(d.spec.vocab), head.tokens)


def small_logits(g: GraphWriter, d: DecoderWriter, exits: StudentExits, head: HeadShape, hidden: str) -> str:
    """hidden [N, D], ready for the head -> logits [N, V or the shortlist's tokens]. Every graph shares the weights."""
    file = small_head_file(head)
    if head.kind == "shortlist":
        rows = replace(d, store=SelectedRows.of(d.store, d.spec.head_weight, head))
        return finish_logits(g, d, g.op("MatMul", hidden, rows.matrix(g, [_rows_name(head)], file)), head)
    assert exits.store is not None
    thin = replace(d, store=exits.store)
    down, up = (thin.matrix(g, [f"head.{head.name}.{part}"], file) for part in ("down", "up"))
    product = g.op("MatMul", g.op("MatMul", hidden, down), up)
    if head.bias:
        name, store = f"head.{head.name}.bias", exits.store
        product = g.op("Add", product, g.array(name, lambda: store.read(name), file))
    return finish_logits(g, d, product)


def _rows_name(head: HeadShape) -> str:
    return f"head.{head.name}.rows"


@dataclass(frozen=True)
class SelectedRows(WeightStore):
    """Some rows of one matrix of a store, as a store of its own with one tensor [rows, D]."""

    source: WeightStore = field(kw_only=True)
    name: str = field(kw_only=True)
    rows: tuple[int, ...] = field(kw_only=True)

    @classmethod
    def of(cls, source: WeightStore, name: str, head: HeadShape) -> "SelectedRows":
        """The rows of a shortlist's tokens."""
        whole = source.tensors[name]
        location = TensorLocation(whole.file, whole.dtype, (len(head.tokens), whole.shape[1]), 0, 0)
        return cls(source.directory, {_rows_name(head): location}, source=source, name=name, rows=tuple(head.tokens))

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All of them at once: a shortlist is short. The matrix itself is read a chunk at a time."""
        out = np.empty(self.tensors[name].shape, np.float32)
        wanted = np.array(self.rows)
        for start, rows in self.source.chunks(self.name):
            here = (wanted >= start) & (wanted < start + len(rows))
            out[here] = rows[wanted[here] - start]
        yield 0, out
