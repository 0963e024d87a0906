"""The graphs of an encoder: embedding, consecutive layers, and classifiers with their exit decision.

The texts of a pass stand one after the other, without padding: N rows of tokens that go on and M frozen rows of tokens
of the same texts that have left (per-token exits). Every projection is one product over exactly these rows; only
attention sees texts, through index inputs that the runtime makes: keys in the order of the text's tokens, whatever
left, padded to a length T that is a multiple of the bucket. So a token costs what it computes, however ragged the
lengths and whatever left, and its bits depend neither on its batch nor on which of its neighbours left (contract.py
says what the inputs hold; ARCHITECTURE.md why).

A frozen row keeps the hidden state that it left with; each deeper layer projects its key and value from that, and
nothing else of it is computed: the rule `propagate` (Schuster et al., "Confident Adaptive Language Modeling", 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as once

import numpy as np
import onnx
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.segments.decision import exit_decision
from eecompile.segments.decoder import MASKED
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import blockwise, dense, table
from eecompile.student.encoder import EncoderActivation, EncoderSpec
from eecompile.student.exits import ExitSpec, StudentExits
from eecompile.student.store import WeightStore

HEAD_FILE = "head.weights"


@dataclass(frozen=True)
class EncoderWriter:
    """Writes the parts of one model into graphs."""

    spec: EncoderSpec
    store: WeightStore
    precision: str

    def embed(self, g: GraphWriter) -> str:
        """token_ids, positions and, where the model tells them apart, token_types, each [N] -> hidden [N, D]."""
        n = self.spec.names
        g.input(c.TOKEN_IDS, "int64", "N")
        g.input(c.POSITIONS, "int64", "N")
        x = g.op("Add", self._looked_up(g, n.words, c.TOKEN_IDS), self._looked_up(g, n.positions, c.POSITIONS))
        if self.spec.types:
            g.input(c.TOKEN_TYPES, "int64", "N")
            x = g.op("Add", x, self._looked_up(g, n.types, c.TOKEN_TYPES))
        return self._norm(g, x, n.embed_norm)

    def inputs(self, g: GraphWriter) -> str:
        """Declare the inputs that every layer shares, and make the mask of attention, float32 [B, 1, R, T]."""
        g.input(c.FROZEN, "float32", "M", self.spec.hidden)
        g.input(c.QUERY_ROWS, "int64", "B", "R")
        g.input(c.ROW_PLACES, "int64", "N")
        g.input(c.KEY_ROWS, "int64", "B", "T")
        g.input(c.KEY_MASK, "bool", "B", "T")
        seen = g.op("Where", c.KEY_MASK, g.constant(0.0, np.float32), g.constant(MASKED, np.float32))
        queries = g.op("Shape", c.QUERY_ROWS, start=1, end=2)
        shape = g.op("Concat", g.constant([1, 1]), queries, g.constant([1]), axis=0)
        return g.op("Expand", g.op("Unsqueeze", seen, g.constant([1, 2])), shape)

    def layer(self, g: GraphWriter, x: str, mask: str, layer: int) -> str:
        """One layer on the active rows x [N, D], with the frozen rows as further keys and values."""
        n, i = self.spec.names, layer
        mixed = self._linear(g, self._attention(g, x, mask, layer), [n.o.format(i=i)])
        x = self._norm(g, g.op("Add", x, mixed), n.attention_norm.format(i=i))
        up = self._linear(g, x, [n.up.format(i=i)])
        down = self._linear(g, activated(g, up, self.spec.activation), [n.down.format(i=i)])
        return self._norm(g, g.op("Add", x, down), n.mlp_norm.format(i=i))

    def classify(self, g: GraphWriter, exits: StudentExits | None = None, exit_: ExitSpec | None = None) -> None:
        """hidden [N, D] -> logits [N, C], and the decision over them but for a regression, whose C is 1.

        The classifier, and the pooler before it, are the model's or the exit's own; an affine adapter maps the hidden
        state onto what the last layer would have given. All of it in float32, whatever the precision: it is small.
        """
        spec, x = self.spec, g.input(c.HIDDEN, "float32", "N", self.spec.hidden)
        if exits is not None and exit_ is not None and exit_.adapter == "classifier":
            if spec.pooler is not None and exits.has(exit_.layer, "pooler.weight"):
                x = activated(g, self._own_linear(g, x, exits, exit_, "pooler"), spec.pooler)
            return self._decide(g, self._own_linear(g, x, exits, exit_, "classifier"))
        if exits is not None and exit_ is not None and exit_.adapter == "affine":
            x = self._own_linear(g, x, exits, exit_, "adapter")
        if spec.pooler is not None:
            x = activated(g, self._plain_linear(g, x, spec.names.pooler), spec.pooler)
        self._decide(g, self._plain_linear(g, x, spec.names.classifier))

    def _decide(self, g: GraphWriter, logits: str) -> None:
        g.output(logits, c.LOGITS, "float32", "N", len(self.spec.labels))
        if self.spec.task == "regression":
            return
        g.input(c.THRESHOLDS, "float32", "N", 3)
        token, max_prob, margin, entropy, flag = exit_decision(g, logits, c.THRESHOLDS)
        g.output(token, c.TOKEN, "int64", "N")
        for value in (max_prob, margin, entropy):
            g.output(value, value, "float32", "N")
        g.output(flag, c.EXIT_FLAG, "bool", "N")

    def _attention(self, g: GraphWriter, x: str, mask: str, layer: int) -> str:
        n, s = self.spec.names, self.spec
        rows = g.op("Concat", x, c.FROZEN, axis=0)
        both = self._linear(g, rows, [n.k.format(i=layer), n.v.format(i=layer)])
        k, v = g.ops("Split", 2, g.op("Gather", both, c.KEY_ROWS, axis=0), g.constant([s.hidden, s.hidden]), axis=2)
        q = g.op("Gather", self._linear(g, x, [n.q.format(i=layer)]), c.QUERY_ROWS, axis=0)
        mixed = g.op("Attention", *(self._heads(g, part) for part in (q, k, v)), mask)
        flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([-1, s.hidden]))
        return g.op("Gather", flat, c.ROW_PLACES, axis=0)

    def _heads(self, g: GraphWriter, x: str) -> str:
        """[B, R, D] -> [B, H, R, d]."""
        shaped = g.op("Reshape", x, g.constant([0, 0, self.spec.heads, self.spec.head_dim]))
        return g.op("Transpose", shaped, perm=[0, 2, 1, 3])

    def _looked_up(self, g: GraphWriter, name: str, rows: str) -> str:
        weight = g.weight(f"{name}.table", lambda: table(self.store, f"{name}.weight", self.precision), "embed.weights")
        found = g.op("Gather", weight, rows, axis=0)
        return found if self.precision == "fp32" else g.op("Cast", found, to=onnx.TensorProto.FLOAT)

    def _norm(self, g: GraphWriter, x: str, name: str) -> str:
        scale = g.array(f"{name}.weight", lambda: self.store.read(f"{name}.weight"))
        bias = g.array(f"{name}.bias", lambda: self.store.read(f"{name}.bias"))
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.spec.norm_eps)

    def _linear(self, g: GraphWriter, x: str, names: Sequence[str]) -> str:
        """Projections of x [.., in] side by side with their biases: [.., sum of out]."""
        biases = [f"{name}.bias" for name in names]
        value = g.array("+".join(biases), lambda: np.concatenate([self.store.read(bias) for bias in biases]))
        return g.op("Add", g.op("MatMul", x, self._matrix(g, [f"{name}.weight" for name in names])), value)

    def _matrix(self, g: GraphWriter, names: Sequence[str]) -> str:
        """The float32 matrix [in, out] of the named weights, dequantised or widened in the graph."""
        name = "+".join(names)
        if self.precision in c.QUANTISED:
            made = once(lambda: blockwise(self.store, names, self.precision))
            values = g.weight(name, lambda: made()[0])
            scales = g.weight(f"{name}.scale", lambda: made()[1])
            return g.op("DequantizeLinear", values, scales, axis=0, block_size=c.BLOCK)
        weight = g.weight(name, lambda: dense(self.store, names, self.precision))
        return g.op("Cast", weight, to=onnx.TensorProto.FLOAT) if self.precision == "fp16" else weight

    def _plain_linear(self, g: GraphWriter, x: str, name: str) -> str:
        weight = g.weight(f"{name}.weight", lambda: dense(self.store, [f"{name}.weight"], "fp32"), HEAD_FILE)
        bias = g.array(f"{name}.bias", lambda: self.store.read(f"{name}.bias"), HEAD_FILE)
        return g.op("Add", g.op("MatMul", x, weight), bias)

    def _own_linear(self, g: GraphWriter, x: str, exits: StudentExits, exit_: ExitSpec, part: str) -> str:
        def tensor(kind: str) -> str:
            return g.array(f"exit.{exit_.layer}.{part}.{kind}", lambda: self._own(exits, exit_, f"{part}.{kind}"))

        return g.op("Add", g.op("MatMul", x, tensor("weight")), tensor("bias"))

    @staticmethod
    def _own(exits: StudentExits, exit_: ExitSpec, part: str) -> NDArray[np.float32]:
        return exits.tensor(exit_.layer, part)


def activated(g: GraphWriter, x: str, kind: EncoderActivation) -> str:
    """An activation of the MLP or the pooler."""
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if kind in ("relu", "tanh"):
        return g.op(kind.capitalize(), x)
    return g.op("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
