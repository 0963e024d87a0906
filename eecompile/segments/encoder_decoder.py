"""Encoder-decoders: the encoder as a graph of its own, and decoder layers that attend to what it gives.

The encoder runs once a request, over the source padded to E tokens, and gives every decoder layer's cross-attention
its keys and values. They are inputs of the decoder's segments, bound for the whole request. Positions enter both stacks
as a bias on the scores, looked up by distance: a row's bias depends on its own position and the key's alone.
"""

from dataclasses import dataclass

import numpy as np

from eecompile import contract as c
from eecompile.segments.decoder import MASKED, DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.outer import write_embed
from eecompile.student.encoder_decoder import EncoderDecoderSpec


@dataclass
class CrossDecoderWriter(DecoderWriter):
    """Writes the decoder's layers: self-attention with relative positions, cross-attention, MLP."""

    spec: EncoderDecoderSpec
    source_mask: str = ""

    def inputs(self, g: GraphWriter) -> None:
        """Declare the inputs that every layer shares."""
        super().inputs(g)
        self.group_query = None  # which knows no bias
        g.input(c.SOURCE_LENGTH, "int64", "B")
        self.source_mask = ""

    def layer(self, g: GraphWriter, x: str, layer: int, cache: int) -> str:
        """One decoder layer on x [B, R, D]; `cache` numbers its cache tensors in this graph."""
        n = self.spec.names
        x = self._add(
            g, x, self._attention(g, self.layer_norm(g, x, n.attention_norm, layer), layer, cache), None, layer
        )
        x = self._add(g, x, self._cross(g, self.layer_norm(g, x, self.spec.cross.norm, layer), layer), None, layer)
        return self._add(g, x, self._mlp(g, self.layer_norm(g, x, n.mlp_norm, layer), layer), None, layer)

    def _cross(self, g: GraphWriter, x: str, layer: int) -> str:
        """Attention of x [B, R, D] over the source: [B, R, D]. Rows are doubled, as in `_attend`."""
        s, n = self.spec, self.spec.cross
        given = [
            g.input(c.cross_name(kind, layer), "float32", "B", s.heads, "E", s.head_dim) for kind in ("key", "value")
        ]
        if not self.source_mask:
            self.source_mask = self._source_mask(g, given[0])
        q = g.op("Reshape", self.linear(g, x, [n.q.format(i=layer)], False), g.constant([0, 0, s.heads, s.head_dim]))
        q = g.op("Transpose", q, perm=[0, 2, 1, 3])
        mixed = g.op("Attention", g.op("Concat", q, q, axis=2), *given, self.source_mask, scale=1.0)
        rows = g.op("Slice", mixed, g.constant([0]), g.op("Shape", q, start=2, end=3), g.constant([2]))
        rows = g.op("Reshape", g.op("Transpose", rows, perm=[0, 2, 1, 3]), g.constant([0, 0, s.heads * s.head_dim]))
        return self.linear(g, rows, [n.o.format(i=layer)], False)

    def _source_mask(self, g: GraphWriter, keys: str) -> str:
        """Where the source's padding is, for doubled rows: float32 [B, 1, 2 R, E], made once a graph."""
        rows = g.op("Mul", g.op("Shape", c.POSITIONS, start=1, end=2), g.constant([2]))
        shape = g.op("Concat", g.constant([1, 1]), rows, g.constant([1]), axis=0)
        return g.op("Expand", _padding_mask(g, keys), shape)

    def _mask(self, g: GraphWriter, window: int | None) -> str:
        """The causal mask and the bias of relative positions, float32 [B, H, R, T]."""
        if window not in self.masks:
            seen = super()._mask(g, window)
            keys = _range(g, c.cache_name("key", 0), 2)
            rows = g.op("Unsqueeze", c.POSITIONS, g.constant([2]))
            bias = _bias(g, self, self.spec, g.op("Sub", keys, rows), self.spec.cross.bias, both=False)
            self.masks[window] = g.op("Add", bias, seen)
        return self.masks[window]


@dataclass
class EncoderWriter(DecoderWriter):
    """Writes the encoder's layers, whose rows see all of the source; `whole` is the model they belong to."""

    whole: EncoderDecoderSpec | None = None

    def cached(self, g: GraphWriter, kind: str, update: str, cache: int) -> str:
        """There is no cache: keys and values are the pass's own."""
        return update

    def _attend(self, g: GraphWriter, q: str, keys: str, values: str, layer: int) -> str:
        """Attention of q [B, H, E, d]. Sources are padded, so that no product has one row."""
        return g.op("Attention", q, keys, values, self._mask(g, None), scale=1.0)

    def _mask(self, g: GraphWriter, window: int | None) -> str:
        """Where padding is, and the bias of relative positions: float32 [B, H, E, E]."""
        assert self.whole is not None
        if window not in self.masks:
            keys = _range(g, c.TOKEN_IDS, 1)
            relative = g.op("Unsqueeze", g.op("Sub", keys, g.op("Unsqueeze", keys, g.constant([1]))), g.constant([0]))
            bias = _bias(g, self, self.whole, relative, self.whole.cross.encoder_bias, both=True)
            self.masks[window] = g.op("Add", bias, _padding_mask(g, c.TOKEN_IDS, 1))
        return self.masks[window]


def write_encoder(g: GraphWriter, d: CrossDecoderWriter) -> None:
    """token_ids [B, E], source_length [B] -> cross_key_i and cross_value_i [B, H, E, d] of every decoder layer i."""
    s = d.spec
    encoder = EncoderWriter(s.encoder, d.store, d.precision, d.context, d.slack, whole=s)
    x = write_embed(g, d)
    g.input(c.SOURCE_LENGTH, "int64", "B")
    for layer in range(s.encoder.layers):
        x = encoder.layer(g, x, layer, layer)
    x = encoder.norm(g, x, s.encoder.names.norm)
    for layer in range(s.layers):
        both = d.linear(g, x, [name.format(i=layer) for name in (s.cross.k, s.cross.v)], False)
        heads = g.op("Reshape", both, g.constant([0, 0, 2 * s.heads, s.head_dim]))
        halves = g.ops("Split", 2, g.op("Transpose", heads, perm=[0, 2, 1, 3]), g.constant([s.heads] * 2), axis=1)
        for kind, value in zip(("key", "value"), halves, strict=True):
            g.output(value, c.cross_name(kind, layer), "float32", "B", s.heads, "E", s.head_dim)


def _bias(g: GraphWriter, d: DecoderWriter, spec: EncoderDecoderSpec, relative: str, name: str, *, both: bool) -> str:
    """The bias [B, H, R, T] of key position - query position, `relative` [B, R, T]; the table is `name`."""
    most = spec.relative.distance
    near = g.op("Max", g.op("Min", relative, g.constant(most)), g.constant(-most))
    lookup = g.constant(spec.relative.buckets(both=both))
    bucket = g.op("Gather", lookup, g.op("Add", near, g.constant(most)), axis=0)
    heads = g.op("Transpose", g.array(f"{name}.table", lambda: d.store.read(name)), perm=[1, 0])
    return g.op("Transpose", g.op("Gather", heads, bucket, axis=1), perm=[1, 0, 2, 3])


def _padding_mask(g: GraphWriter, tensor: str, axis: int = 2) -> str:
    """0 for keys of the source and a large negative number for padding, float32 [B, 1, 1, E]; E is the tensor's size
    along `axis`."""
    live = g.op("Less", _range(g, tensor, axis), g.op("Unsqueeze", c.SOURCE_LENGTH, g.constant([1, 2, 3])))
    return g.op("Where", live, g.constant(0.0, np.float32), g.constant(MASKED, np.float32))


def _range(g: GraphWriter, tensor: str, axis: int) -> str:
    """0, 1, .. along one axis of a tensor."""
    size = g.op("Squeeze", g.op("Shape", tensor, start=axis, end=axis + 1))
    return g.op("Range", g.constant(0), size, g.constant(1))
