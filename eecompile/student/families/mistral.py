"""Mistral: llama with a sliding window in every layer."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.families.common import gated_decoder, window_everywhere
from eecompile.student.model import DecoderSpec

DEFAULTS = {  # what a config leaves out, in transformers too
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`sliding_window` null means that every layer attends to everything."""
    return gated_decoder({**DEFAULTS, **config}, windows=window_everywhere)
