"""Phi-3 and Phi-3.5: llama with q, k and v in one matrix, gate and up in another, and LongRoPE for long contexts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import fused, gated_decoder, window_everywhere
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": 32000,
}  # fmt: skip
_QKV, _GATE_UP = "model.layers.{i}.self_attn.qkv_proj", "model.layers.{i}.mlp.gate_up_proj"
NAMES = WeightNames(q=f"{_QKV}.q", k=f"{_QKV}.k", v=f"{_QKV}.v", gate=f"{_GATE_UP}.gate", up=f"{_GATE_UP}.up")
LONGROPE = ("su", "yarn")  # what the first configs call it


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """The frequencies of the original context hold for builds up to it, the long ones for builds beyond it."""
    full = {**DEFAULTS, **config}
    for key in ("rope_scaling", "rope_parameters"):
        settings = full.get(key)
        if isinstance(settings, Mapping) and settings.get("rope_type", settings.get("type")) in LONGROPE:
            full[key] = {**settings, "rope_type": "longrope"}
    spec = gated_decoder(full, rotated=1.0, windows=window_everywhere)
    d, f = spec.hidden, spec.intermediate
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    parts = {NAMES.q: [range(q)], NAMES.k: [range(q, q + kv)], NAMES.v: [range(q + kv, q + 2 * kv)]}
    halves = {NAMES.gate: [range(f)], NAMES.up: [range(f, 2 * f)]}
    return replace(spec, names=NAMES, sources=fused(_QKV, d, parts, q + 2 * kv) | fused(_GATE_UP, d, halves, 2 * f))
