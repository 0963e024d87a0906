"""Qwen2 and Qwen2.5: biases on q, k and v; a sliding window in the upper layers where it is switched on."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder, sliding_windows
from eecompile.student.model import DecoderSpec


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """The window is off unless `use_sliding_window` is true."""
    return gated_decoder(config, qkv_bias=True, windows=sliding_windows({"use_sliding_window": False, **config}))
