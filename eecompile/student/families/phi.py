"""Phi-1, 1.5 and 2: attention and plain MLP side by side behind one layer norm, half of each head rotated."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder, refuse
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LAYER = "model.layers.{i}"
NAMES = WeightNames(
    norm="model.final_layernorm.weight",
    head_bias="lm_head.bias",
    o=f"{_LAYER}.self_attn.dense",
    mlp_norm=None,
    up=f"{_LAYER}.mlp.fc1",
    down=f"{_LAYER}.mlp.fc2",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Everything has a bias, the head too. `qk_layernorm`, which no published Phi has, is refused."""
    refuse(config, "qk_layernorm")
    full = {**DEFAULTS, **config}
    spec = gated_decoder(full, qkv_bias=True, o_bias=True, mlp_bias=True, epsilon="layer_norm_eps", rotated=0.5)
    return replace(spec, norm="layer", norm_bias=True, gated=False, parallel=True, names=NAMES)
