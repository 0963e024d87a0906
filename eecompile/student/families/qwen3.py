"""Qwen3: RMS norms on each head's query and key, head_dim of its own, optional attention biases."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families import qwen2
from eecompile.student.families.common import gated_decoder, window_in_some
from eecompile.student.model import DecoderSpec


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """head_dim defaults to 128, as the published configs have it, whatever D / H is."""
    bias = bool(config.get("attention_bias", False))
    full = {**qwen2.DEFAULTS, "head_dim": 128, **config}
    return gated_decoder(full, qkv_bias=bias, o_bias=bias, qk_norm="head", windows=window_in_some)
