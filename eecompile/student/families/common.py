"""What the llama-like families share: reading the sizes and checking that they fit together."""

from collections.abc import Mapping
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.model import Activation, DecoderSpec
from eecompile.student.rope import rope_from_config

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def gated_decoder(
    config: Mapping[str, Any],
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows: tuple[int | None, ...] | None = None,
) -> DecoderSpec:
    """The llama shape with the given switches; raises UsageError where the config is incomplete or does not fit."""
    layers, hidden = _size(config, "num_hidden_layers", c.MAX_LAYERS), _size(config, "hidden_size", c.MAX_HIDDEN)
    heads = _size(config, "num_attention_heads", c.MAX_HEADS)
    kv_heads = _size(config, "num_key_value_heads", c.MAX_HEADS, heads)
    head_dim = _size(config, "head_dim", 4096, hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise UsageError(f"{heads} heads of {head_dim} do not fit {kv_heads} key/value heads", where="config.json")
    activation = str(config.get("hidden_act", "silu"))
    if activation not in _ACTIVATIONS:
        raise UsageError(
            f"activation {activation!r} is not supported",
            where="config.json",
            mend=f"supported: {', '.join(sorted(_ACTIVATIONS))}",
        )
    return DecoderSpec(
        family=str(config["model_type"]),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_size(config, "intermediate_size", 1 << 20),
        vocab=_size(config, "vocab_size", c.MAX_VOCAB),
        max_positions=_size(config, "max_position_embeddings", c.MAX_CONTEXT, 2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=_ACTIVATIONS[activation],
        rope=rope_from_config(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=windows or (None,) * layers,
        bos=config.get("bos_token_id"),
        eos=_ids(config.get("eos_token_id")),
    )


def sliding_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Per-layer windows from `layer_types`, or `use_sliding_window` with `max_window_layers` (Qwen's older form)."""
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    types = config.get("layer_types")
    if not window or not config.get("use_sliding_window", True):
        return (None,) * layers
    if types:
        return tuple(int(window) if t == "sliding_attention" else None for t in types)
    first = int(config.get("max_window_layers", 0))
    return tuple(int(window) if i >= first else None for i in range(layers))


def _size(config: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"{key} is {value!r}, not a number from 1 to {most}", where="config.json")
    return value


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
