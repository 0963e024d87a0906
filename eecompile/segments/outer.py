"""The graphs around the layers: token embedding, exit (adapter and learned gate), and the head that all exits share."""

import numpy as np

from eecompile import contract as c
from eecompile.segments.decision import exit_decision
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.modules import write_module
from eecompile.segments.quantize import table
from eecompile.student.exits import ExitSpec, StudentExits
from eecompile.student.modules import MODULES

EMBED_FILE = "embed.weights"  # a tied head of the same precision reads its matrix from here


def write_embed(g: GraphWriter, d: DecoderWriter) -> str:
    """token_ids [B, R] -> hidden [B, R, D]. The table is float32, or float16 in every smaller precision."""
    g.input(c.TOKEN_IDS, "int64", "B", "R")
    name = d.spec.names.embed
    rows = g.op("Gather", _table(g, d, name, EMBED_FILE), c.TOKEN_IDS, axis=0)
    rows = rows if d.precision == "fp32" else g.op("Cast", rows, to=1)
    return _scaled(g, rows, d.spec.embed_scale)


def write_exit(g: GraphWriter, d: DecoderWriter, exits: StudentExits, exit_: ExitSpec) -> None:
    """hidden [N, D] -> exit_hidden [N, D], ready for the head; and confidence [N] where the exit has a learned gate.

    The hidden state is normalised by the model's final norm; an affine adapter then maps it onto what the last layer
    would have given. Both the gate and the adapter read the normalised state. The gate's weights are inputs: a policy
    replaces them without a rebuild. A module (modules.py) reads the hidden state as it is and has a norm of its own.
    """
    size = d.spec.hidden
    if exit_.adapter in MODULES:
        rows, adapted = write_module(g, d, exits, exit_)
        normed = d.norm(g, rows, d.spec.names.norm) if exit_.gate_units else ""
    else:
        normed = adapted = d.norm(g, g.input(c.HIDDEN, "float32", "N", size), d.spec.names.norm)
    if exit_.adapter == "affine":
        weight = g.array(f"exit.{exit_.layer}.weight", lambda: exits.tensor(exit_.layer, "adapter.weight"))
        bias = g.array(f"exit.{exit_.layer}.bias", lambda: exits.tensor(exit_.layer, "adapter.bias"))
        adapted = g.op("Add", g.op("MatMul", normed, weight), bias)
    g.output(adapted, c.EXIT_HIDDEN, "float32", "N", size)
    if exit_.gate_units:
        _write_gate(g, normed, size, exit_.gate_units)


def write_head(g: GraphWriter, d: DecoderWriter) -> None:
    """hidden [N, D] (normalised), thresholds [N, 3] -> logits [N, V], token, max_prob, margin, entropy, exit_flag."""
    g.input(c.HIDDEN, "float32", "N", d.spec.hidden)
    g.input(c.THRESHOLDS, "float32", "N", 3)
    decide(g, head_logits(g, d, c.HIDDEN), d.spec.vocab)


def head_logits(g: GraphWriter, d: DecoderWriter, hidden: str) -> str:
    """hidden [N, D] -> [N, V]. A tied dense head multiplies by the embedding table itself, stored once."""
    name = d.spec.head_weight
    if d.precision in c.QUANTISED:
        return _finish_logits(g, d, g.op("MatMul", hidden, d.matrix(g, [name], "head.weights")))
    weight = _table(g, d, name, EMBED_FILE if d.spec.tied else "head.weights")
    if d.precision == "fp16":
        weight = g.op("Cast", weight, to=1)
    return _finish_logits(g, d, g.op("Gemm", hidden, weight, transB=1))


def decide(g: GraphWriter, logits: str, vocab: int) -> None:
    """Make the logits and the exit decision the graph's outputs."""
    token, max_prob, margin, entropy, flag = exit_decision(g, logits, c.THRESHOLDS)
    g.output(logits, c.LOGITS, "float32", "N", vocab)
    g.output(token, c.TOKEN, "int64", "N")
    for value in (max_prob, margin, entropy):
        g.output(value, value, "float32", "N")
    g.output(flag, c.EXIT_FLAG, "bool", "N")


def _finish_logits(g: GraphWriter, d: DecoderWriter, logits: str) -> str:
    """What some families do to the product: a scale, a bias, a bound c * tanh(x / c)."""
    logits, bias, most = _scaled(g, logits, d.spec.logit_scale), d.spec.names.head_bias, d.spec.logit_softcap
    if bias is not None:
        logits = g.op("Add", logits, g.array(bias, lambda: d.store.read(bias), "head.weights"))
    return logits if most is None else _scaled(g, g.op("Tanh", _scaled(g, logits, 1 / most)), most)


def _scaled(g: GraphWriter, x: str, scale: float) -> str:
    return x if scale == 1 else g.op("Mul", x, g.constant(scale, np.float32))


def _table(g: GraphWriter, d: DecoderWriter, name: str, file: str) -> str:
    return g.weight(f"{name}.table", lambda: table(d.store, name, d.precision), file)


def _write_gate(g: GraphWriter, normed: str, size: int, units: int) -> None:
    g.input(c.GATE_W1, "float32", size, units)
    g.input(c.GATE_B1, "float32", units)
    g.input(c.GATE_W2, "float32", units, 1)
    g.input(c.GATE_B2, "float32", 1)
    inner = g.op("Tanh", g.op("Add", g.op("MatMul", normed, c.GATE_W1), c.GATE_B1))
    score = g.op("Sigmoid", g.op("Add", g.op("MatMul", inner, c.GATE_W2), c.GATE_B2))
    g.output(g.op("Squeeze", score, g.constant([1])), c.CONFIDENCE, "float32", "N")
