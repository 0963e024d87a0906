"""OLMo 2: llama with norms after attention and MLP only, and norms over all queries and all keys of a token."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "eos_token_id": 50279}
_LAYER = "model.layers.{i}"
NAMES = WeightNames(
    attention_norm=None,
    attention_post_norm=f"{_LAYER}.post_attention_layernorm.weight",
    mlp_norm=None,
    mlp_post_norm=f"{_LAYER}.post_feedforward_layernorm.weight",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """One switch sets the biases of all four attention projections."""
    bias = bool(config.get("attention_bias", False))
    spec = gated_decoder({**DEFAULTS, **config}, qkv_bias=bias, o_bias=bias, qk_norm="whole")
    return replace(spec, names=NAMES)
