"""config.json of tiny models: one for each thing that a family's description can say."""

from typing import Any

Config = dict[str, Any]
VOCAB = 128


def config(family: str = "llama", **changes: Any) -> Config:
    """config.json of a four-layer model with grouped heads; None removes a key."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": 256,
    }  # fmt: skip
    settings = {
        "architectures": [f"{family.capitalize()}ForCausalLM"], "model_type": family, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "tie_word_embeddings": False, "sliding_window": None,
        "bos_token_id": 1, "eos_token_id": [],
    }  # fmt: skip
    settings |= FAMILY.get(family, {})
    return {k: v for k, v in {**sizes, **settings, **changes}.items() if v is not None or k == "sliding_window"}


FAMILY: dict[str, Config] = {  # what a family's config has otherwise; epsilons are large enough to be missed
    "cohere": {"layer_norm_eps": 1e-2, "logit_scale": 0.7, "tie_word_embeddings": True},
    "cohere2": {"layer_norm_eps": 1e-2, "logit_scale": 0.7, "tie_word_embeddings": True, "sliding_window": 20},
    "gemma": {"hidden_act": "gelu", "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {
        "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "tie_word_embeddings": True, "sliding_window": 20,
        "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0,
    },
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "tie_word_embeddings": True, "sliding_window": 20,
        "query_pre_attn_scalar": 24, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gpt_neox": {
        "layer_norm_eps": 1e-2, "rotary_pct": 0.5, "rotary_emb_base": 500.0, "hidden_act": "gelu",
        "num_key_value_heads": None,
    },
    "granite": {
        "attention_multiplier": 0.2, "embedding_multiplier": 1.5, "residual_multiplier": 0.6, "logits_scaling": 2.5,
    },
    "olmo3": {"sliding_window": 20},
    "phi": {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
    "phi3": {"num_key_value_heads": None, "pad_token_id": 0},
    "smollm3": {"pad_token_id": 0},
    "stablelm": {"layer_norm_eps": 1e-2, "partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "starcoder2": {"norm_epsilon": 1e-2, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 20},
}  # fmt: skip


def gpt2(**changes: Any) -> Config:
    """config.json of a GPT-2, which has its own words for everything."""
    settings = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4,
        "n_positions": 256, "n_inner": None, "vocab_size": VOCAB, "layer_norm_epsilon": 1e-2, "bos_token_id": 1,
        "eos_token_id": [], "activation_function": "gelu_new", "tie_word_embeddings": True,
    }  # fmt: skip
    return {**settings, **changes}


def variants() -> dict[str, Config]:
    """One config for each thing that a family's description can say."""
    return {**llama_variants(), **other_variants()}


def other_variants() -> dict[str, Config]:
    """Those of the families that are less like llama."""
    kinds = ["sliding_attention", "full_attention"] * 2
    nested = {
        "full_attention": {"rope_type": "linear", "rope_theta": 2000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
    longrope = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 5.0, 9.0, 20.0]}
    stretched = {"max_position_embeddings": 8192, "original_max_position_embeddings": 2048}
    return {
        "gpt2": gpt2(),
        "gpt2-untied": gpt2(tie_word_embeddings=False, n_inner=96, activation_function="relu"),
        "gpt2-scales": gpt2(scale_attn_by_inverse_layer_idx=True, n_head=2),
        "gpt2-unscaled": gpt2(scale_attn_weights=False),
        "gpt_neox": config("gpt_neox"),
        "gpt_neox-in-turn": config("gpt_neox", use_parallel_residual=False, attention_bias=False),
        "gpt_neox-new": config("gpt_neox", rope_parameters={"rope_theta": 200.0, "partial_rotary_factor": 1.0}),
        "phi": config("phi"),
        "phi3": config("phi3", sliding_window=20),
        "phi3-groups": config("phi3", num_key_value_heads=2, partial_rotary_factor=0.75),
        "phi3-longrope": config("phi3", **stretched, rope_scaling=longrope),
        "gemma": config("gemma"),
        "gemma-biases": config("gemma", attention_bias=True, num_key_value_heads=1, tie_word_embeddings=False),
        "gemma2": config("gemma2"),
        "gemma2-unbounded": config(
            "gemma2", attn_logit_softcapping=None, final_logit_softcapping=9.0, num_key_value_heads=4
        ) | {"attn_logit_softcapping": None, "layer_types": kinds[::-1]},
        "gemma3": config("gemma3_text"),
        "gemma3-new": config(
            "gemma3_text", rope_theta=None, rope_scaling=None, rope_local_base_freq=None, sliding_window_pattern=None,
            rope_parameters=nested, layer_types=kinds, final_logit_softcapping=6.0, attn_logit_softcapping=3.0,
        ),
        "olmo2": config("olmo2"),
        "olmo2-biases": config("olmo2", attention_bias=True, num_key_value_heads=4),
        "olmo3": config("olmo3"),
        "olmo3-new": config("olmo3", rope_theta=None, rope_parameters=nested, layer_types=kinds),
        "granite": config("granite", attention_bias=True, mlp_bias=True),
        "starcoder2": config("starcoder2", tie_word_embeddings=True),
        "starcoder2-plain": config("starcoder2", use_bias=False, sliding_window=None),
        "stablelm": config("stablelm"),
        "stablelm-parallel": config("stablelm", use_parallel_residual=True, use_qkv_bias=False),
        "cohere": config("cohere", attention_bias=True),
        "cohere2": config("cohere2", layer_types=kinds),
        "smollm3": config("smollm3", no_rope_layer_interval=2),
        "smollm3-window": config(
            "smollm3", no_rope_layers=[1, 0, 0, 1], use_sliding_window=True, sliding_window=20, attention_bias=True
        ),
    }  # fmt: skip


def llama_variants() -> dict[str, Config]:
    """Those of llama and its nearest relatives."""
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    window = {"use_sliding_window": True, "sliding_window": 20}
    kinds = ["sliding_attention", "full_attention"] * 2
    new = {"rope_theta": None}  # the newer spelling keeps theta among the rope parameters
    return {
        "llama": config(),
        "llama-fused": config(head_dim=16, attention_bias=True),
        "llama-fused-every-head-its-keys": config(head_dim=16, num_key_value_heads=4),
        "llama-every-head-its-keys": config(num_key_value_heads=4),
        "llama-one-key-head": config(num_key_value_heads=1),
        "llama-tied": config(tie_word_embeddings=True, head_dim=None),
        "llama-biases": config(attention_bias=True, mlp_bias=True),
        "llama-gelu": config(hidden_act="gelu"),
        "llama-gelu-tanh": config(hidden_act="gelu_pytorch_tanh"),
        "llama-relu": config(hidden_act="relu"),
        "llama-rope-parameters": config(**new, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        "llama-linear": config(rope_scaling={"type": "linear", "factor": 4.0}),
        "llama-llama3": config(rope_scaling={"rope_type": "llama3", **llama3}),
        "llama-llama3-new": config(**new, rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **llama3}),
        "llama-yarn": config(rope_scaling={"rope_type": "yarn", **yarn, "beta_fast": 8.0}),
        "llama-yarn-new": config(**new, rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0}),
        "llama-yarn-mscale": config(
            rope_scaling={"rope_type": "yarn", **yarn, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False}
        ),
        "llama-yarn-attention": config(rope_scaling={"rope_type": "yarn", **yarn, "attention_factor": 1.3}),
        "mistral": config("mistral"),
        "mistral-window": config("mistral", sliding_window=20, head_dim=16),
        "qwen2": config("qwen2", head_dim=None),
        "qwen2-window": config("qwen2", head_dim=None, **window, max_window_layers=2),
        "qwen2-layer-types": config("qwen2", head_dim=None, **window, layer_types=kinds),
        "qwen3": config("qwen3", head_dim=16),
        "qwen3-biases": config("qwen3", head_dim=16, attention_bias=True, num_key_value_heads=4),
        "qwen3-window": config("qwen3", head_dim=16, tie_word_embeddings=True, **window, max_window_layers=1),
    }
