"""GPT-2: learned positions, layer norms with biases, a plain MLP; matrices as [in, out], q, k and v in one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families.common import fused, gated_decoder, refuse
from eecompile.student.model import DecoderSpec, WeightNames

KEYS = {  # the family's own spellings
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "activation_function": "hidden_act",
}  # fmt: skip
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 1024,
    "hidden_act": "gelu_new", "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": 50256, "eos_token_id": 50256,
}  # fmt: skip
_LAYER = "transformer.h.{i}"
NAMES = WeightNames(
    embed="transformer.wte.weight",
    positions="transformer.wpe.weight",
    norm="transformer.ln_f.weight",
    attention_norm=f"{_LAYER}.ln_1.weight",
    q=f"{_LAYER}.attn.c_attn.q",
    k=f"{_LAYER}.attn.c_attn.k",
    v=f"{_LAYER}.attn.c_attn.v",
    o=f"{_LAYER}.attn.c_proj",
    mlp_norm=f"{_LAYER}.ln_2.weight",
    up=f"{_LAYER}.mlp.c_fc",
    down=f"{_LAYER}.mlp.c_proj",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """`n_inner` null means 4 D; attention may be scaled by 1 / (layer + 1) too, or not at all."""
    refuse(config, "add_cross_attention")
    own = {KEYS.get(key, key): value for key, value in config.items()}
    full = {**DEFAULTS, **own, "num_key_value_heads": None, "head_dim": None, "rope_scaling": None}
    if full.get("intermediate_size") is None and isinstance(full["hidden_size"], int):
        full["intermediate_size"] = 4 * full["hidden_size"]
    spec = gated_decoder(full, qkv_bias=True, o_bias=True, mlp_bias=True, epsilon="layer_norm_epsilon")
    scale = spec.scales[0] if config.get("scale_attn_weights", True) else 1.0
    by_layer = bool(config.get("scale_attn_by_inverse_layer_idx", False))
    return replace(
        spec,
        norm="layer",
        norm_bias=True,
        gated=False,
        ropes=(None,) * spec.layers,
        scales=tuple(scale / (i + 1) if by_layer else scale for i in range(spec.layers)),
        names=NAMES,
        sources=_matrices(spec.hidden, spec.intermediate),
        prefix="transformer.",
    )


def _matrices(d: int, inner: int) -> Any:
    thirds = {name: [range(k * d, (k + 1) * d)] for k, name in enumerate((NAMES.q, NAMES.k, NAMES.v))}
    return {
        **fused(f"{_LAYER}.attn.c_attn", d, thirds, 3 * d, transposed=True),
        **fused(NAMES.o, d, {NAMES.o: [range(d)]}, d, transposed=True),
        **fused(NAMES.up, d, {NAMES.up: [range(inner)]}, inner, transposed=True),
        **fused(NAMES.down, inner, {NAMES.down: [range(d)]}, d, transposed=True),
    }
