"""The graph of consecutive decoder layers, under the cache contract.

A pass runs R rows of B slots. Each row's key and value are scattered into the slot's cache at `write_index`, in place;
attention reads the whole cache, masked by position: a row sees what is at or before its own position and, in a windowed
layer, inside the window. Cache index equals position (compact.py: where it does not), so padding rows (written after
the real ones) are never seen by them and are overwritten by the next pass. T, the cache's length, is the runtime's to
choose: as long as the sequence where shapes may change, as long as the context where they may not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as once
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.segments.caches import write_cache
from eecompile.segments.compact import cache_rows, write_positions
from eecompile.segments.eight import EIGHTS
from eecompile.segments.fused import GroupQuery, Rotary, can_fuse, fuse_skip_norms
from eecompile.segments.graph import GraphWriter
from eecompile.segments.low_rank import LowRank
from eecompile.segments.quantize import blockwise, dense, table
from eecompile.segments.scaled import scaled_product
from eecompile.student.model import DecoderSpec, bias_name
from eecompile.student.modules import mlp_norm
from eecompile.student.rope import Rope, rope_tables
from eecompile.student.store import WeightStore

MASKED = -1e30  # finite, and exp() of any score less this is zero
SHARED_FILE = "shared.weights"  # rope tables: every segment refers to the same ones


@dataclass
class DecoderWriter:
    """Writes decoder layers of one model into a graph. `context` is S, `slack` the cache rows past it.

    fused: use ONNX Runtime's own operators where they serve (fused.py); such a graph takes one slot. low_rank: LoRA
    of a block that repeats. compact: tokens that stopped leave no row in the caches. largest: magnitudes
    of the inputs [in] of weights whose products are of 8-bit numbers, by name.
    """

    spec: DecoderSpec
    store: WeightStore
    precision: str
    context: int
    slack: int
    fused: bool = False
    low_rank: LowRank | None = None
    masks: dict[int | None, str] = field(default_factory=dict)
    group_query: GroupQuery | None = None
    cache: str = "fp32"  # what keys and values are kept in
    compact: bool = False
    kept_positions: str = ""
    largest: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def inputs(self, g: GraphWriter) -> None:
        """Declare the inputs that every layer shares."""
        g.input(c.POSITIONS, "int64", "B", "R")
        g.input(c.WRITE_INDEX, "int64", "B")
        self.masks.clear()
        self.group_query, self.kept_positions = None, ""
        if self.low_rank is not None:
            self.low_rank.inputs = {}
        if self.fused and self.cache == "fp32" and can_fuse(self.spec, compact=self.compact):
            self.group_query = GroupQuery.of(g, compact=self.compact)

    def finish(self, g: GraphWriter) -> None:
        """Call where a segment ends, all of it written."""
        if self.fused:
            g.apply(fuse_skip_norms)

    def layer(self, g: GraphWriter, x: str, layer: int, cache: int) -> str:
        """One decoder layer on x [B, R, D]; `cache` numbers its cache tensors in this graph."""
        n, s = self.spec.names, self.spec
        if self.low_rank is not None:
            self.low_rank.enter(layer, cache)
        if layer == 0 and n.positions:
            x = self._add_positions(g, x, n.positions)
        normed = self.layer_norm(g, x, n.attention_norm, layer)
        after = self._add(g, x, self._attention(g, normed, layer, cache), n.attention_post_norm, layer)
        if not (s.parallel and n.mlp_norm is None):
            normed = self.layer_norm(g, x if s.parallel else after, n.mlp_norm, layer)
        return self._add(g, after, self._mlp(g, normed, layer), n.mlp_post_norm, layer)

    def mlp_block(self, g: GraphWriter, x: str, layer: int) -> str:
        """The MLP of a layer alone on x [.., D], with its norm and residual."""
        normed = self.layer_norm(g, x, mlp_norm(self.spec), layer)
        return self._add(g, x, self._mlp(g, normed, layer), self.spec.names.mlp_post_norm, layer)

    def norm(self, g: GraphWriter, x: str, name: str) -> str:
        """Normalisation over the last dimension by the weight `name`, RMS or layer as the model has it."""
        scale = g.array(name, lambda: self.store.read(name))
        if self.spec.norm == "rms":
            return g.op("RMSNormalization", x, scale, axis=-1, epsilon=self.spec.norm_eps)
        bias = bias_name(name)
        biases = [g.array(bias, lambda: self.store.read(bias))] if self.spec.norm_bias else []
        return g.op("LayerNormalization", x, scale, *biases, axis=-1, epsilon=self.spec.norm_eps)

    def layer_norm(self, g: GraphWriter, x: str, name: str | None, layer: int) -> str:
        """x normalised by the layer's norm `name`, or as it is where the family has none there."""
        return x if name is None else self.norm(g, x, name.format(i=layer))

    def _add(self, g: GraphWriter, x: str, update: str, post_norm: str | None, layer: int) -> str:
        """x plus what attention or MLP made of it."""
        update = self.layer_norm(g, update, post_norm, layer)
        if self.spec.residual_scale != 1:
            update = g.op("Mul", update, g.constant(self.spec.residual_scale, np.float32))
        return g.op("Add", x, update)

    def _add_positions(self, g: GraphWriter, x: str, name: str) -> str:
        """Learned positions. Padding rows may stand past the last one; what they become is never seen."""
        values = g.weight(f"{name}.table", lambda: table(self.store, name, self.precision))
        known = g.op("Min", c.POSITIONS, g.constant(self.spec.max_positions - 1))
        rows = g.op("Gather", values, known, axis=0)
        return g.op("Add", x, rows if self.precision == "fp32" else g.op("Cast", rows, to=onnx.TensorProto.FLOAT))

    def _mlp(self, g: GraphWriter, x: str, layer: int) -> str:
        s, names = self.spec, self.spec.names
        gate, up = [n.format(i=layer) for n in (names.gate, names.up)]
        if s.gated:
            both = self.linear(g, x, [gate, up], s.mlp_bias)
            activated, linear = g.ops("Split", 2, both, g.constant([s.intermediate] * 2), axis=-1)
            inner = g.op("Mul", self._activation(g, activated), linear)
        else:
            inner = self._activation(g, self.linear(g, x, [up], s.mlp_bias))
        return self.linear(g, inner, [names.down.format(i=layer)], s.mlp_bias)

    def linear(self, g: GraphWriter, x: str, names: Sequence[str], bias: bool) -> str:
        """Projections of x [.., in] side by side: [.., sum of out]."""
        weights = [f"{n}.weight" for n in names]
        if weights[0] in self.largest:
            inputs = np.maximum.reduce([self.largest[name] for name in weights])
            out = scaled_product(g, self.store, x, weights, EIGHTS[self.precision], inputs)
        else:
            out = g.op("MatMul", x, self.matrix(g, weights))
        if self.low_rank is not None:
            out = self.low_rank.add(g, x, out, names)
        if not bias:
            return out
        biases = [f"{n}.bias" for n in names]
        value = g.array("+".join(biases), lambda: np.concatenate([self.store.read(b) for b in biases]))
        return g.op("Add", out, value)

    def matrix(self, g: GraphWriter, names: Sequence[str], file: str = "") -> str:
        """The float32 matrix [in, out] of the named weights, dequantised or widened in the graph."""
        name = "+".join(names)
        if self.precision in c.QUANTISED:
            made = once(lambda: blockwise(self.store, names, self.precision))
            values = g.weight(name, lambda: made()[0], file)
            scales = g.weight(f"{name}.scale", lambda: made()[1], file)
            return g.op("DequantizeLinear", values, scales, axis=0, block_size=c.BLOCK)
        weight = g.weight(name, lambda: dense(self.store, names, self.precision), file)
        return weight if self.precision == "fp32" else g.op("Cast", weight, to=onnx.TensorProto.FLOAT)

    def _attention(self, g: GraphWriter, x: str, layer: int, cache: int) -> str:
        s, names = self.spec, self.spec.names
        projected = self.linear(g, x, [n.format(i=layer) for n in (names.q, names.k, names.v)], s.qkv_bias)
        mix = self._mix if self.group_query is None else self._mix_fused
        return self.linear(g, mix(g, projected, layer, cache), [names.o.format(i=layer)], s.o_bias)

    def _mix_fused(self, g: GraphWriter, projected: str, layer: int, cache: int) -> str:
        """As `_mix`, in one operator."""
        s, rope = self.spec, self.spec.ropes[layer]
        assert self.group_query is not None
        rotary = None if rope is None else Rotary(*self._tables(g, rope), interleaved=rope.interleaved)
        return self.group_query.attend(
            g, projected, cache, rotary, heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim,
            scale=s.scales[layer], window=s.windows[layer], softcap=s.softcap or 0.0,
        )  # fmt: skip

    def _mix(self, g: GraphWriter, projected: str, layer: int, cache: int) -> str:
        """projected [B, R, (H + 2 KV) d] -> what each head gathers, [B, R, H d].

        Queries, keys and values keep together as long as they can: fewer, larger nodes for a one-row pass.
        """
        s = self.spec
        if s.qk_norm == "whole":
            projected = self._norm_whole(g, projected, layer)
        heads = g.op("Reshape", projected, g.constant([0, 0, s.heads + 2 * s.kv_heads, s.head_dim]))
        heads = g.op("Transpose", heads, perm=[0, 2, 1, 3])
        qk, v = g.ops("Split", 2, heads, g.constant([s.heads + s.kv_heads, s.kv_heads]), axis=1)
        if s.qk_norm == "head":
            qk = self._norm_heads(g, qk, layer)
        q, k = g.ops("Split", 2, self.rotate(g, qk, layer), g.constant([s.heads, s.kv_heads]), axis=1)
        keys, values = self.cached(g, "key", k, cache), self.cached(g, "value", v, cache)
        mixed = self._attend(g, q, keys, values, layer)
        rows = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return g.op("Reshape", rows, g.constant([0, 0, s.heads * s.head_dim]))

    def _norm_heads(self, g: GraphWriter, qk: str, layer: int) -> str:
        """RMS normalisation of each head of qk [B, H + KV, R, d], with one scale for queries and one for keys."""
        s = self.spec
        q, k = (n.format(i=layer) for n in (s.names.q_norm, s.names.k_norm))

        def scales() -> NDArray[np.float32]:
            parts = [np.tile(self.store.read(name), (heads, 1)) for name, heads in ((q, s.heads), (k, s.kv_heads))]
            return np.concatenate(parts)[:, None, :]

        unit = g.constant(np.ones(s.head_dim), np.float32)
        normed = g.op("RMSNormalization", qk, unit, axis=-1, epsilon=s.norm_eps)
        return g.op("Mul", normed, g.array(f"{q}+{k}", scales))

    def _norm_whole(self, g: GraphWriter, projected: str, layer: int) -> str:
        """RMS normalisation of all queries of [B, R, (H + 2 KV) d] together, and of all keys."""
        s = self.spec
        widths = [heads * s.head_dim for heads in (s.heads, s.kv_heads, s.kv_heads)]
        parts = list(g.ops("Split", 3, projected, g.constant(widths), axis=-1))
        for i, name in enumerate(n.format(i=layer) for n in (s.names.q_norm, s.names.k_norm)):
            scale = g.array(name, partial(self.store.read, name))
            parts[i] = g.op("RMSNormalization", parts[i], scale, axis=-1, epsilon=s.norm_eps)
        return g.op("Concat", *parts, axis=-1)

    def _attend(self, g: GraphWriter, q: str, keys: str, values: str, layer: int) -> str:
        """Attention of q [B, H, R, d] over the cache [B, KV, T, d].

        The H / KV query heads that share a key head become rows of one product. That reads the keys once instead of
        H / KV times, and gives every product two rows or more: a one-row product goes through another kernel, whose
        last bits differ, and then a token would depend on how many rows its pass had. Where every head has keys of
        its own, the rows are doubled instead.
        """
        s, group = self.spec, self.spec.heads // self.spec.kv_heads
        window = s.windows[layer]
        how: dict[str, Any] = {}
        if s.scales[layer] != s.head_dim**-0.5:
            how["scale"] = s.scales[layer]
        if s.softcap is not None:
            how["softcap"] = s.softcap
        if group == 1:
            mask = g.op("Concat", *[self._mask(g, window)] * 2, axis=2)
            mixed = g.op("Attention", g.op("Concat", q, q, axis=2), keys, values, mask, **how)
            rows = g.op("Shape", q, start=2, end=3)
            return g.op("Slice", mixed, g.constant([0]), rows, g.constant([2]))
        grouped = g.op("Reshape", q, g.constant([0, s.kv_heads, -1, s.head_dim]))
        mask = g.op("Concat", *[self._mask(g, window)] * group, axis=2)
        mixed = g.op("Attention", grouped, keys, values, mask, **how)
        return g.op("Reshape", mixed, g.constant([0, s.heads, -1, s.head_dim]))

    def rotate(self, g: GraphWriter, x: str, layer: int) -> str:
        """Turn x [B, heads, R, d] by its positions."""
        rope, d = self.spec.ropes[layer], self.spec.head_dim
        if rope is None:
            return x
        how: dict[str, Any] = {"interleaved": 1} if rope.interleaved else {}
        if rope.rotated(d) < d:
            how["rotary_embedding_dim"] = rope.rotated(d)
        return g.op("RotaryEmbedding", x, *self._tables(g, rope), c.POSITIONS, **how)

    def _tables(self, g: GraphWriter, rope: Rope) -> tuple[str, str]:
        """Cosines and sines [S + slack, rotated / 2] of one of the model's rotations; all segments share them."""
        number = self._rotations().index(rope)
        name = f"rope.{number}" if number else "rope"
        tables = once(lambda: rope_tables(rope, self.spec.head_dim, self.context + self.slack))
        cos = g.array(f"{name}.cos", lambda: tables()[0], SHARED_FILE)
        return cos, g.array(f"{name}.sin", lambda: tables()[1], SHARED_FILE)

    def _rotations(self) -> list[Rope]:
        found: list[Rope] = []
        for rope in self.spec.ropes:
            found += [rope] if rope is not None and rope not in found else []
        return found

    def cached(self, g: GraphWriter, kind: str, update: str, cache: int) -> str:
        """Scatter the update [B, KV, R, d] into the cache [B, KV, T, d], in place; returns the cache in float32."""
        return write_cache(g, self.cache, kind, update, cache, (self.spec.kv_heads, self.spec.head_dim))

    def _mask(self, g: GraphWriter, window: int | None) -> str:
        """0 where a row may look and a large negative number elsewhere, float32 [B, 1, R, T]; made once a graph for
        each window. Attention would make the same of a bool mask in every layer."""
        if window not in self.masks:
            length = g.op("Shape", c.cache_name("key", 0), start=2, end=3)
            keys = g.op("Range", g.constant(0), g.op("Squeeze", length), g.constant(1))
            rows = g.op("Unsqueeze", cache_rows(g) if self.compact else c.POSITIONS, g.constant([1, 3]))
            seen = g.op("LessOrEqual", keys, rows)
            if window is not None and self.compact:
                keys, rows = self.key_positions(g), g.op("Unsqueeze", c.POSITIONS, g.constant([1, 3]))
            if window is not None:
                seen = g.op("And", seen, g.op("Greater", keys, g.op("Sub", rows, g.constant(window))))
            self.masks[window] = g.op("Where", seen, g.constant(0.0, np.float32), g.constant(MASKED, np.float32))
        return self.masks[window]

    def key_positions(self, g: GraphWriter) -> str:
        """The positions of the rows of a compact cache [B, 1, 1, T], this pass's included; written once a graph."""
        self.kept_positions = self.kept_positions or write_positions(g)
        return self.kept_positions

    def _activation(self, g: GraphWriter, x: str) -> str:
        if self.spec.activation == "silu":  # Swish, in the form that ONNX Runtime fuses
            return g.op("Mul", x, g.op("Sigmoid", x))
        if self.spec.activation == "relu":  # after a Relu node, ONNX Runtime leaves a quantised product unfused
            return g.op("Max", x, g.constant(0.0, np.float32))
        approximate = "tanh" if self.spec.activation == "gelu_tanh" else "none"
        return g.op("Gelu", x, approximate=approximate)
