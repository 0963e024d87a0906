"""The graphs around the layers: token embedding, and the head that the last layer and most exits share."""

from collections.abc import Sequence

import numpy as np

from eecompile import contract as c
from eecompile.segments.decision import exit_decision
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import table
from eecompile.shapes import HeadShape

EMBED_FILE = "embed.weights"  # a tied head of the same precision reads its matrix from here
HEAD_FILE = "head.weights"


def write_embed(g: GraphWriter, d: DecoderWriter) -> str:
    """token_ids [B, R] -> hidden [B, R, D]. The table is float32, or float16 in every smaller precision."""
    g.input(c.TOKEN_IDS, "int64", "B", "R")
    name = d.spec.names.embed
    rows = g.op("Gather", _table(g, d, name, EMBED_FILE), c.TOKEN_IDS, axis=0)
    rows = rows if d.precision == "fp32" else g.op("Cast", rows, to=1)
    return _scaled(g, rows, d.spec.embed_scale)


def write_head(g: GraphWriter, d: DecoderWriter) -> None:
    """hidden [N, D] (normalised), thresholds [N, 3] -> logits [N, V], token, max_prob, margin, entropy, exit_flag."""
    g.input(c.HIDDEN, "float32", "N", d.spec.hidden)
    g.input(c.THRESHOLDS, "float32", "N", 3)
    decide(g, head_logits(g, d, c.HIDDEN), d.spec.vocab)


def head_logits(g: GraphWriter, d: DecoderWriter, hidden: str) -> str:
    """hidden [N, D] -> [N, V]. A tied dense head multiplies by the embedding table itself, stored once."""
    name = d.spec.head_weight
    if d.precision in c.QUANTISED:
        return finish_logits(g, d, g.op("MatMul", hidden, d.matrix(g, [name], HEAD_FILE)))
    weight = _table(g, d, name, EMBED_FILE if d.spec.tied else HEAD_FILE)
    if d.precision != "fp32":
        weight = g.op("Cast", weight, to=1)
    return finish_logits(g, d, g.op("Gemm", hidden, weight, transB=1))


def decide(g: GraphWriter, logits: str, vocab: int, tokens: Sequence[int] = ()) -> None:
    """Make the logits [N, vocab] and the exit decision the graph's outputs. tokens: those of a shortlist's columns."""
    place = "place" if tokens else c.TOKEN
    token, max_prob, margin, entropy, flag = exit_decision(g, logits, c.THRESHOLDS, token=place)
    if tokens:
        token = g.op("Gather", g.constant(tokens), place, named=c.TOKEN)
    g.output(logits, c.LOGITS, "float32", "N", vocab)
    g.output(token, c.TOKEN, "int64", "N")
    for value in (max_prob, margin, entropy):
        g.output(value, value, "float32", "N")
    g.output(flag, c.EXIT_FLAG, "bool", "N")


def finish_logits(g: GraphWriter, d: DecoderWriter, logits: str, shortlist: HeadShape | None = None) -> str:
    """As LogitFinish (student/finish.py). shortlist: the head whose tokens the product [N, tokens] is of, if it is of
    some; every other product is of all tokens."""
    logits, bias, most = _scaled(g, logits, d.spec.logit_scale), d.spec.names.head_bias, d.spec.logit_softcap
    if bias is not None:
        logits = g.op("Add", logits, _bias(g, d, bias, shortlist))
    return logits if most is None else _scaled(g, g.op("Tanh", _scaled(g, logits, 1 / most)), most)


def _bias(g: GraphWriter, d: DecoderWriter, name: str, shortlist: HeadShape | None) -> str:
    if shortlist is None:
        return g.array(name, lambda: d.store.read(name), HEAD_FILE)
    own, tokens = f"head.{shortlist.name}.model_bias", shortlist.tokens
    return g.array(own, lambda: d.store.read(name)[tokens], small_head_file(shortlist))


def small_head_file(head: HeadShape) -> str:
    """The weight file of a small head."""
    return f"head_{head.name}.weights"


def _scaled(g: GraphWriter, x: str, scale: float) -> str:
    return x if scale == 1 else g.op("Mul", x, g.constant(scale, np.float32))


def _table(g: GraphWriter, d: DecoderWriter, name: str, file: str) -> str:
    return g.weight(f"{name}.table", lambda: table(d.store, name, d.precision), file)
