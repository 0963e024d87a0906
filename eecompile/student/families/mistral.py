"""Mistral: llama with a sliding window in every layer."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder
from eecompile.student.model import DecoderSpec


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`sliding_window` null means that every layer attends to everything."""
    window = config.get("sliding_window")
    windows = (int(window) if window else None,) * int(config["num_hidden_layers"])
    return gated_decoder(config, windows=windows)
