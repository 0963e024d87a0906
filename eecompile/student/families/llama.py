"""Llama and what copies it (SmolLM2, TinyLlama, Llama 2 and 3)."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder
from eecompile.student.model import DecoderSpec

DEFAULTS = {"bos_token_id": 1, "eos_token_id": 2}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """One switch sets the biases of all four attention projections."""
    bias = bool(config.get("attention_bias", False))
    full = {**DEFAULTS, **config}
    return gated_decoder(full, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))
