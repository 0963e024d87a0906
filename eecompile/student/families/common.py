"""What the llama-like families share: reading the sizes and checking that they fit together."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.model import Activation, DecoderSpec
from eecompile.student.rope import rope_from_config

Windows = tuple[int | None, ...]

_SLIDING, _FULL = "sliding_attention", "full_attention"
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
    windows: Callable[[Mapping[str, Any], int], Windows] = lambda config, layers: (None,) * layers,
) -> DecoderSpec:
    """The llama shape with the given switches; `windows` reads the layers' sliding windows.

    Raises UsageError where the config is incomplete or does not fit.
    """
    layers, hidden = _size(config, "num_hidden_layers", c.MAX_LAYERS), _size(config, "hidden_size", c.MAX_HIDDEN)
    heads = _size(config, "num_attention_heads", c.MAX_HEADS)
    kv_heads = _size(config, "num_key_value_heads", c.MAX_HEADS, heads)
    head_dim = _size(config, "head_dim", 4096, hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise UsageError(f"{heads} heads of {head_dim} do not fit {kv_heads} key/value heads", where="config.json")
    activation, vocab = str(config.get("hidden_act", "silu")), _size(config, "vocab_size", c.MAX_VOCAB)
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
        vocab=vocab,
        max_positions=_size(config, "max_position_embeddings", c.MAX_CONTEXT, 2048),
        norm_eps=_epsilon(config),
        activation=_ACTIVATIONS[activation],
        rope=rope_from_config(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=windows(config, layers),
        bos=next(iter(_ids(config, "bos_token_id", vocab)), None),
        eos=_ids(config, "eos_token_id", vocab),
    )


def window_everywhere(config: Mapping[str, Any], layers: int) -> Windows:
    """`sliding_window` in every layer; null means that all attend to everything."""
    return (_window(config),) * layers


def window_in_some(config: Mapping[str, Any], layers: int) -> Windows:
    """Per-layer windows from `layer_types`, or from layer `max_window_layers` on; none unless `use_sliding_window`."""
    window, types = _window(config), config.get("layer_types")
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    if types is None:
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise UsageError(f"max_window_layers is {first!r}, not a number of layers", where="config.json")
        types = [_SLIDING if i >= first else _FULL for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (_SLIDING, _FULL) for kind in types):
        raise UsageError(f"layer_types does not say for {layers} layers which slide", where="config.json")
    return tuple(window if kind == _SLIDING else None for kind in types)


def _window(config: Mapping[str, Any]) -> int | None:
    return None if config.get("sliding_window") is None else _size(config, "sliding_window", c.MAX_CONTEXT)


def _size(config: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"{key} is {value!r}, not a number from 1 to {most}", where="config.json")
    return value


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config.get("rms_norm_eps", 1e-6)
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"rms_norm_eps is {value!r}, not a small number", where="config.json")
    return float(value)


def _ids(config: Mapping[str, Any], key: str, vocab: int) -> tuple[int, ...]:
    """One token id, several, or none."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or not 0 <= i < vocab for i in ids):
        raise UsageError(f"{key} is {value!r}, not ids from 0 to {vocab - 1}", where="config.json")
    return tuple(ids)
