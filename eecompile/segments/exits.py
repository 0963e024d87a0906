"""The graph of an exit: norm and adapter, and the gates that are asked before any head runs.

The weights of gates are inputs: a policy replaces them without a rebuild.
"""

from eecompile import contract as c
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.heads import small_logits
from eecompile.segments.modules import write_module
from eecompile.shapes import RouterShape
from eecompile.student.exits import ExitSpec, StudentExits
from eecompile.student.modules import MODULES


def write_exit(g: GraphWriter, d: DecoderWriter, exits: StudentExits, exit_: ExitSpec) -> None:
    """hidden [N, D] -> exit_hidden [N, D], ready for a head, and what each of the exit's cheap gates goes by.

    The hidden state is normalised by the model's final norm; an affine adapter then maps it onto what the last layer
    would have given. The adapter and the learned gate read the normalised state, a predictor what the head will read,
    saturation and routers the state as it is. A module (modules.py) reads it as it is too, and has a norm of its own.
    """
    size, name = d.spec.hidden, f"exit.{exit_.depth}"
    if exit_.adapter in MODULES:
        rows, ready = write_module(g, d, exits, exit_)
        normed = d.norm(g, rows, d.spec.names.norm) if exit_.gate_units else ""
    else:
        rows = g.input(c.HIDDEN, "float32", "N", size)
        ready = normed = d.norm(g, rows, d.spec.names.norm)
    if exit_.adapter == "affine":
        weight = g.array(f"{name}.weight", lambda: exits.tensor(exit_.layer, "adapter.weight"))
        bias = g.array(f"{name}.bias", lambda: exits.tensor(exit_.layer, "adapter.bias"))
        ready = g.op("Add", g.op("MatMul", normed, weight), bias)
    g.output(ready, c.EXIT_HIDDEN, "float32", "N", size)
    if exit_.gate_units:
        _write_learned(g, normed, size, exit_.gate_units)
    if "saturation" in exit_.gates:
        _write_saturation(g, rows, size)
    if exit_.router is not None:
        _write_router(g, rows, size, exit_.router)
    if exit_.predictor is not None:
        _write_predictor(g, d, exits, exit_, ready)


def _write_learned(g: GraphWriter, normed: str, size: int, units: int) -> None:
    g.input(c.GATE_W1, "float32", size, units)
    g.input(c.GATE_B1, "float32", units)
    g.input(c.GATE_W2, "float32", units, 1)
    g.input(c.GATE_B2, "float32", 1)
    inner = g.op("Tanh", g.op("Add", g.op("MatMul", normed, c.GATE_W1), c.GATE_B1))
    score = g.op("Sigmoid", g.op("Add", g.op("MatMul", inner, c.GATE_W2), c.GATE_B2))
    g.output(g.op("Squeeze", score, g.constant([1])), c.CONFIDENCE, "float32", "N")


def _write_saturation(g: GraphWriter, rows: str, size: int) -> None:
    """Cosine of each row with its `previous` one; NaN where that is zero, which no threshold lets pass."""
    g.input(c.PREVIOUS, "float32", "N", size)

    def product(a: str, b: str) -> str:
        return g.op("ReduceSum", g.op("Mul", a, b), g.constant([1]), keepdims=0)

    sizes = [g.op("Sqrt", product(name, name)) for name in (rows, c.PREVIOUS)]
    cosine = g.op("Div", product(rows, c.PREVIOUS), g.op("Mul", *sizes))
    g.output(cosine, c.SATURATION, "float32", "N")


def _write_router(g: GraphWriter, rows: str, size: int, shape: RouterShape) -> None:
    """As Mixture-of-Recursions' token-choice routers: linear, or two layers with GELU between them."""
    inner = rows
    if shape.units:
        g.input(f"{c.ROUTER}_w1", "float32", size, shape.units)
        g.input(f"{c.ROUTER}_b1", "float32", shape.units)
        inner = g.op("Gelu", g.op("Add", g.op("MatMul", rows, f"{c.ROUTER}_w1"), f"{c.ROUTER}_b1"))
    g.input(f"{c.ROUTER}_w2", "float32", shape.units or size, shape.choices)
    g.input(f"{c.ROUTER}_b2", "float32", shape.choices)
    logits = g.op("Add", g.op("MatMul", inner, f"{c.ROUTER}_w2"), f"{c.ROUTER}_b2")
    g.output(logits, c.CHOICES, "float32", "N", shape.choices)


def _write_predictor(g: GraphWriter, d: DecoderWriter, exits: StudentExits, exit_: ExitSpec, ready: str) -> None:
    """SpecEE's predictor (Xu et al. 2025): the candidates' logits, their probabilities among themselves and how far
    those moved since the last predictor, into an MLP. The first exit asked of a token chooses the candidates."""
    assert exit_.predictor is not None
    count, units, head = c.CANDIDATE_COUNT, exit_.predictor.units, exits.head(exit_.predictor.head)
    g.input(c.CANDIDATES, "int64", "N", count)
    g.input(c.LAST_LOCAL, "float32", "N", count)
    for part, shape in (("w1", (3 * count, units)), ("b1", (units,)), ("w2", (units, 1)), ("b2", (1,))):
        g.input(f"{c.PREDICTOR}_{part}", "float32", *shape)
    logits = small_logits(g, d, exits, head, ready)
    _, best = g.ops("TopK", 2, logits, g.constant([count]), axis=-1)
    chosen = g.op("Where", g.op("Less", c.CANDIDATES, g.constant(0)), best, c.CANDIDATES)
    scores = g.op("GatherElements", logits, chosen, axis=1)
    local = g.op("Softmax", scores, axis=-1)
    features = g.op("Concat", scores, local, g.op("Sub", local, c.LAST_LOCAL), axis=1)
    inner = g.op("Relu", g.op("Add", g.op("MatMul", features, f"{c.PREDICTOR}_w1"), f"{c.PREDICTOR}_b1"))
    score = g.op("Sigmoid", g.op("Add", g.op("MatMul", inner, f"{c.PREDICTOR}_w2"), f"{c.PREDICTOR}_b2"))
    tokens = g.op("Gather", g.constant(head.tokens), chosen) if head.tokens else chosen
    g.output(g.op("Squeeze", score, g.constant([1])), c.PREDICTION, "float32", "N")
    g.output(chosen, c.CANDIDATES_OUT, "int64", "N", count)
    g.output(tokens, c.CANDIDATE_TOKENS, "int64", "N", count)
    g.output(local, c.LOCAL, "float32", "N", count)
