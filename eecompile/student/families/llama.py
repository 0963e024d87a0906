"""Llama and what copies it (SmolLM2, TinyLlama, Llama 2 and 3)."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder
from eecompile.student.model import DecoderSpec


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """One switch sets the biases of all four attention projections."""
    bias = bool(config.get("attention_bias", False))
    return gated_decoder(config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))
