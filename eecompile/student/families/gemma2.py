"""Gemma 2: Gemma with norms around attention and MLP, bounded scores and logits, windows in every other layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families import gemma
from eecompile.student.families.common import (
    Windows,
    all_but_every,
    gated_decoder,
    number,
    one_more,
    positive,
    refuse,
    window_by_type,
)
from eecompile.student.model import DecoderSpec, QKNorm, WeightNames

DEFAULTS = {
    **gemma.DEFAULTS, "num_key_value_heads": 4, "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
_LAYER = "model.layers.{i}"
NAMES = WeightNames(
    attention_post_norm=f"{_LAYER}.post_attention_layernorm.weight",
    mlp_norm=f"{_LAYER}.pre_feedforward_layernorm.weight",
    mlp_post_norm=f"{_LAYER}.post_feedforward_layernorm.weight",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Scores are scaled by query_pre_attn_scalar, not by the head's size."""
    spec = sandwich({**DEFAULTS, **config}, pattern=2)
    return replace(
        spec,
        softcap=positive(config, "attn_logit_softcapping", 50.0),
        logit_softcap=positive(config, "final_logit_softcapping", 30.0),
    )


def sandwich(config: Mapping[str, Any], *, pattern: int, qk_norm: QKNorm | None = None) -> DecoderSpec:
    """What Gemma 2 and 3 share; every `pattern`-th layer sees everything, the others a window."""
    refuse(config, "use_bidirectional_attention")
    full = {**config, "hidden_act": config.get("hidden_activation")}
    bias = bool(config.get("attention_bias", False))

    def windows(config: Mapping[str, Any], layers: int) -> Windows:
        return window_by_type(config, all_but_every(layers, pattern))

    spec = gated_decoder(full, qkv_bias=bias, o_bias=bias, qk_norm=qk_norm, windows=windows)
    scale = number(config, "query_pre_attn_scalar", 256, least=1e-6) ** -0.5
    spec = replace(spec, embed_scale=spec.hidden**0.5, scales=(scale,) * spec.layers, names=NAMES)
    return replace(spec, sources=one_more(spec))
