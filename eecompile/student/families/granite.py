"""Granite: llama with multipliers on embeddings, scores, residual branches and logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families import llama
from eecompile.student.families.common import gated_decoder, number
from eecompile.student.model import DecoderSpec


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`logits_scaling` divides the logits; the attention multiplier replaces 1 / sqrt(d)."""
    bias = bool(config.get("attention_bias", False))
    full = {**llama.DEFAULTS, **config}
    spec = gated_decoder(full, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))
    return replace(
        spec,
        scales=(number(config, "attention_multiplier", 1.0),) * spec.layers,
        embed_scale=number(config, "embedding_multiplier", 1.0),
        residual_scale=number(config, "residual_multiplier", 1.0),
        logit_scale=1 / number(config, "logits_scaling", 1.0, least=1e-6),
    )
