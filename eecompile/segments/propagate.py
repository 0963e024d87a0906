"""K/V-only graphs: what `propagate` runs of the layers that a token has skipped.

Schuster et al., "Confident Adaptive Language Modeling" (2022), section 3.1: a skipped layer's keys and values are its
own projections of the hidden state that the token left with. So a graph is norm, key and value projection, key norm and
rotation, scattered into the cache; no queries, no attention, no MLP. Norms and rotary tables are the segment's own in
its weight file; the projections are stored again, since there they stand beside the queries' in one matrix.
"""

from functools import partial

from eecompile import contract as c
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter


def write_kv_graph(g: GraphWriter, d: DecoderWriter, layers: range) -> None:
    """hidden [B, R, D], the state that the tokens left with -> the caches of a segment's `layers`, in place."""
    x = g.input(c.HIDDEN, "float32", "B", "R", d.spec.hidden)
    d.inputs(g)
    for cache, layer in enumerate(layers):
        _layer(d, g, x, layer, cache)
    if d.compact and any(d.spec.windows[layer] is not None for layer in layers):
        d.key_positions(g)


def _layer(d: DecoderWriter, g: GraphWriter, x: str, layer: int, cache: int) -> None:
    s, names = d.spec, d.spec.names
    normed = d.layer_norm(g, x, names.attention_norm, layer)
    projected = d.linear(g, normed, [n.format(i=layer) for n in (names.k, names.v)], s.qkv_bias)
    k, v = g.ops("Split", 2, projected, g.constant([s.kv_heads * s.head_dim] * 2), axis=-1)
    if s.qk_norm == "whole":
        k = _norm_keys(d, g, k, layer)
    k = _heads(d, g, k)
    if s.qk_norm == "head":
        k = _norm_keys(d, g, k, layer)
    d.cached(g, "key", d.rotate(g, k, layer), cache)
    d.cached(g, "value", _heads(d, g, v), cache)


def _heads(d: DecoderWriter, g: GraphWriter, x: str) -> str:
    """[B, R, KV d] -> [B, KV, R, d]."""
    split = g.op("Reshape", x, g.constant([0, 0, d.spec.kv_heads, d.spec.head_dim]))
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def _norm_keys(d: DecoderWriter, g: GraphWriter, k: str, layer: int) -> str:
    name = d.spec.names.k_norm.format(i=layer)
    return g.op("RMSNormalization", k, g.array(name, partial(d.store.read, name)), axis=-1, epsilon=d.spec.norm_eps)
