"""A decoder layer in torch from its description alone (eecompile.student.model), for modules of exits.

The same arithmetic for every family that eecompile compiles, on weights under the names that the description gives
them. Whole sequences only; rows of padding on the right are never seen by those before them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from eecompile.student.model import DecoderSpec, bias_name
from eecompile.student.modules import mlp_norm
from eecompile.student.rope import Rope, rope_tables

Weights = Mapping[str, Tensor]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def norm(spec: DecoderSpec, weights: Weights, x: Tensor, name: str) -> Tensor:
    """x [.., D] through the norm `name`."""
    bias = weights[bias_name(name)] if spec.norm_bias else None
    if spec.norm == "layer":
        return functional.layer_norm(x, x.shape[-1:], weights[name], bias, spec.norm_eps)
    return _rms(x, weights[name], spec.norm_eps)


def mlp_block(spec: DecoderSpec, weights: Weights, x: Tensor, layer: int) -> Tensor:
    """The MLP of a layer alone on x [.., D], with its norm and residual."""
    before = mlp_norm(spec)
    normed = x if before is None else norm(spec, weights, x, before.format(i=layer))
    return x + _mlp(spec, weights, normed, layer) * spec.residual_scale


def decoder_layer(spec: DecoderSpec, weights: Weights, x: Tensor, layer: int) -> Tensor:
    """x [B, T, D], whole sequences, through a layer."""
    n = spec.names
    normed = x if n.attention_norm is None else norm(spec, weights, x, n.attention_norm.format(i=layer))
    mixed = _attention(spec, weights, normed, layer)
    if n.attention_post_norm is not None:
        mixed = norm(spec, weights, mixed, n.attention_post_norm.format(i=layer))
    after = x + mixed * spec.residual_scale
    if not spec.parallel:
        normed = after if n.mlp_norm is None else norm(spec, weights, after, n.mlp_norm.format(i=layer))
    elif n.mlp_norm is not None:
        normed = norm(spec, weights, x, n.mlp_norm.format(i=layer))
    return after + _mlp(spec, weights, normed, layer) * spec.residual_scale


def _mlp(spec: DecoderSpec, weights: Weights, x: Tensor, layer: int) -> Tensor:
    n, act = spec.names, ACTIVATIONS[spec.activation]
    up = _linear(weights, x, n.up.format(i=layer), spec.mlp_bias)
    inner = act(_linear(weights, x, n.gate.format(i=layer), spec.mlp_bias)) * up if spec.gated else act(up)
    out = _linear(weights, inner, n.down.format(i=layer), spec.mlp_bias)
    return out if n.mlp_post_norm is None else norm(spec, weights, out, n.mlp_post_norm.format(i=layer))


def _attention(spec: DecoderSpec, weights: Weights, x: Tensor, layer: int) -> Tensor:
    n, (batch, length) = spec.names, x.shape[:2]
    q, k, v = (_linear(weights, x, name.format(i=layer), spec.qkv_bias) for name in (n.q, n.k, n.v))
    norms = weights.get(n.q_norm.format(i=layer)), weights.get(n.k_norm.format(i=layer))
    if spec.qk_norm == "whole":
        q, k = (_rms(t, w, spec.norm_eps) for t, w in zip((q, k), norms, strict=True))
    q, k, v = (t.view(batch, length, -1, spec.head_dim).transpose(1, 2) for t in (q, k, v))
    if spec.qk_norm == "head":
        q, k = (_rms(t, w, spec.norm_eps) for t, w in zip((q, k), norms, strict=True))
    rope = spec.ropes[layer]
    if rope is not None:
        q, k = _rotate(q, rope), _rotate(k, rope)
    mixed = _attend(q * spec.scales[layer], k, v, spec.windows[layer], spec.softcap)
    return _linear(weights, mixed.transpose(1, 2).flatten(2), n.o.format(i=layer), spec.o_bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """q [B, H, T, d], scaled, k and v [B, KV, T, d] -> [B, H, T, d]."""
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    places = torch.arange(length, device=q.device)
    back = places[:, None] - places[None, :]
    seen = (back >= 0) & (back < (window or length))
    return torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ v


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    """x [B, H, T, d] turned by its positions 0, 1, .."""
    cos, sin = (torch.from_numpy(t).to(x) for t in rope_tables(rope, x.shape[-1], x.shape[2]))
    turned = rope.rotated(x.shape[-1])
    part, rest = x[..., :turned], x[..., turned:]
    if rope.interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = part.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _linear(weights: Weights, x: Tensor, name: str, bias: bool) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"] if bias else None)


def _rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    assert weight is not None
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def finish_logits(spec: DecoderSpec, product: Tensor, bias: Tensor | None) -> Tensor:
    """The logits that a head's product [.., W] becomes (student/finish.py): the model's scale, bias [W] and bound."""
    product = product if spec.logit_scale == 1 else product * spec.logit_scale
    product = product if bias is None else product + bias
    cap = spec.logit_softcap
    return product if cap is None else cap * torch.tanh(product / cap)
