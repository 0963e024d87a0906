"""StarCoder2: rotary positions and grouped heads with GPT-2's layer norms, biases and plain MLP."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder, window_everywhere
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "tie_word_embeddings": True, "bos_token_id": 50256, "eos_token_id": 50256,
}  # fmt: skip
NAMES = WeightNames(up="model.layers.{i}.mlp.c_fc", down="model.layers.{i}.mlp.c_proj")


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`use_bias` is for every projection; the norms always have biases."""
    bias = bool(config.get("use_bias", True))
    spec = gated_decoder(
        {**DEFAULTS, **config},
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        epsilon="norm_epsilon",
        windows=window_everywhere,
    )
    return replace(spec, norm="layer", norm_bias=True, gated=False, names=NAMES)
