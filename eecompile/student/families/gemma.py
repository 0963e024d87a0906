"""Gemma: llama with scaled embeddings, norms that multiply by 1 + weight, and heads of a size of their own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder, one_more, refuse
from eecompile.student.model import DecoderSpec

DEFAULTS = {
    "head_dim": 256, "num_key_value_heads": 16, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`hidden_act` gelu means its tanh form here, whatever it says."""
    refuse(config, "use_bidirectional_attention")
    full = {**DEFAULTS, **config}
    if full.get("hidden_act", "gelu") == "gelu":
        full["hidden_act"] = "gelu_pytorch_tanh"
    bias = bool(config.get("attention_bias", False))
    spec = gated_decoder(full, qkv_bias=bias, o_bias=bias)
    return replace(spec, embed_scale=spec.hidden**0.5, sources=one_more(spec))
