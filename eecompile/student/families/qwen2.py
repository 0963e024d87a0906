"""Qwen2 and Qwen2.5: biases on q, k and v; a sliding window in the upper layers where it is switched on."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder, window_in_some
from eecompile.student.model import DecoderSpec

DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """The window is off unless `use_sliding_window` is true."""
    return gated_decoder({**DEFAULTS, **config}, qkv_bias=True, windows=window_in_some)
