"""GPT-NeoX (Pythia): attention and MLP side by side, layer norms, part of each head rotated, q, k and v by the head."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import fused, gated_decoder
from eecompile.student.model import DecoderSpec, WeightNames

DEFAULTS = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_LAYER = "gpt_neox.layers.{i}"
NAMES = WeightNames(
    embed="gpt_neox.embed_in.weight",
    norm="gpt_neox.final_layer_norm.weight",
    head="embed_out.weight",
    attention_norm=f"{_LAYER}.input_layernorm.weight",
    q=f"{_LAYER}.attention.query_key_value.q",
    k=f"{_LAYER}.attention.query_key_value.k",
    v=f"{_LAYER}.attention.query_key_value.v",
    o=f"{_LAYER}.attention.dense",
    mlp_norm=f"{_LAYER}.post_attention_layernorm.weight",
    up=f"{_LAYER}.mlp.dense_h_to_4h",
    down=f"{_LAYER}.mlp.dense_4h_to_h",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`use_parallel_residual` false puts the MLP behind attention, as elsewhere."""
    own = {"rope_theta": config.get("rotary_emb_base", 10_000.0), "partial_rotary_factor": config.get("rotary_pct")}
    full = {**DEFAULTS, **config, **own, "num_key_value_heads": None, "head_dim": None}
    bias = bool(config.get("attention_bias", True))
    spec = gated_decoder(full, qkv_bias=bias, o_bias=bias, mlp_bias=True, epsilon="layer_norm_eps", rotated=0.25)
    d, heads = spec.head_dim, range(spec.heads)
    parts = {
        name: [range((3 * head + k) * d, (3 * head + k + 1) * d) for head in heads]
        for k, name in enumerate((NAMES.q, NAMES.k, NAMES.v))
    }
    return replace(
        spec,
        norm="layer",
        norm_bias=True,
        gated=False,
        parallel=bool(config.get("use_parallel_residual", True)),
        names=NAMES,
        sources=fused(f"{_LAYER}.attention.query_key_value", spec.hidden, parts, 3 * spec.heads * d),
        prefix="gpt_neox.",
    )
