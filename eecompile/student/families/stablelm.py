"""StableLM: llama with layer norms and a quarter of each head rotated."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import gated_decoder, refuse
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "layer_norm_eps": 1e-5, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """With `use_parallel_residual` attention and MLP share one norm. `qk_layernorm` (a norm a head) is refused."""
    refuse(config, "qk_layernorm")
    full = {**DEFAULTS, **config, "head_dim": None}
    bias = bool(config.get("use_qkv_bias", False))
    spec = gated_decoder(full, qkv_bias=bias, epsilon="layer_norm_eps", rotated=0.25)
    parallel = bool(config.get("use_parallel_residual", False))
    names = WeightNames(mlp_norm=None) if parallel else WeightNames()
    return replace(spec, norm="layer", norm_bias=True, parallel=parallel, names=names)
