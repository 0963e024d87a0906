"""Cohere (Command R, Aya): attention and MLP side by side behind one layer norm, neighbours rotated, scaled logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder, number, refuse
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "layer_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 5,
    "eos_token_id": 255001,
}  # fmt: skip
THETA = 500_000.0


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`use_qk_norm` (a layer norm with a weight for each head) is refused."""
    refuse(config, "use_qk_norm")
    return parallel({"rope_theta": THETA, **config})


def parallel(config: Mapping[str, Any]) -> DecoderSpec:
    """What Cohere and Cohere 2 share."""
    bias = bool(config.get("attention_bias", False))
    spec = gated_decoder({**DEFAULTS, **config}, qkv_bias=bias, o_bias=bias, epsilon="layer_norm_eps")
    return replace(
        spec,
        norm="layer",
        parallel=True,
        ropes=tuple(rope and replace(rope, interleaved=True) for rope in spec.ropes),
        logit_scale=number(config, "logit_scale", 0.0625),
        names=WeightNames(mlp_norm=None),
    )
