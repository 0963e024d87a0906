"""SmolLM3: llama without positions in every fourth layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.families.common import all_but_every, gated_decoder, size, window_by_type
from eecompile.student.model import DecoderSpec

DEFAULTS = {
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "bos_token_id": 128000, "eos_token_id": 128001, "rope_theta": 2_000_000.0,
}  # fmt: skip


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`no_rope_layers` has 1 where there is a rotation; where there is none, a window may be switched on."""
    bias = bool(config.get("attention_bias", False))
    full = {**DEFAULTS, **config}
    spec = gated_decoder(full, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))
    rotates = full.get("no_rope_layers")
    if rotates is None:
        rotates = all_but_every(spec.layers, size(full, "no_rope_layer_interval", c.MAX_LAYERS, 4))
    if not isinstance(rotates, list) or len(rotates) != spec.layers:
        raise UsageError(f"no_rope_layers does not say for {spec.layers} layers which rotate", where="config.json")
    ropes = tuple(rope if turns else None for rope, turns in zip(spec.ropes, rotates, strict=True))
    on = bool(full.get("use_sliding_window", False))
    windows = window_by_type(full, [not turns for turns in rotates]) if on else spec.windows
    return replace(spec, ropes=ropes, windows=windows)
