"""What the llama-like families share: reading the sizes and checking that they fit together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.model import Activation, DecoderSpec, QKNorm
from eecompile.student.rope import Rope, rope_from_config
from eecompile.student.store import View

Windows = tuple[int | None, ...]
_MOST = 1e30

_SLIDING, _FULL = "sliding_attention", "full_attention"
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
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
    qk_norm: QKNorm | None = None,
    epsilon: str = "rms_norm_eps",
    rotated: float | None = None,
    windows: Callable[[Mapping[str, Any], int], Windows] = lambda config, layers: (None,) * layers,
) -> DecoderSpec:
    """The llama shape with the given switches, for families to replace what they have otherwise.

    epsilon: the norms' key in the config. rotated: the share of a head that rotary positions turn unless the config
    says otherwise (None: all of it). windows: reads the layers' sliding windows.
    Raises UsageError where the config is incomplete or does not fit.
    """
    layers, hidden = size(config, "num_hidden_layers", c.MAX_LAYERS), size(config, "hidden_size", c.MAX_HIDDEN)
    heads = size(config, "num_attention_heads", c.MAX_HEADS)
    kv_heads = size(config, "num_key_value_heads", c.MAX_HEADS, heads)
    head_dim = size(config, "head_dim", 4096, hidden // heads)
    if heads % kv_heads or head_dim % 2 or (config.get("head_dim") is None and hidden % heads):
        raise UsageError(f"{heads} heads of {head_dim} do not fit {kv_heads} key/value heads", where="config.json")
    vocab = size(config, "vocab_size", c.MAX_VOCAB)
    return DecoderSpec(
        family=str(config["model_type"]),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=size(config, "intermediate_size", 1 << 20),
        vocab=vocab,
        max_positions=size(config, "max_position_embeddings", c.MAX_CONTEXT, 2048),
        norm_eps=number(config, epsilon, 1e-6, least=0),
        activation=activation(config.get("hidden_act", "silu")),
        ropes=(rope_from_config(config, head_dim, share=rotated),) * layers,
        windows=windows(config, layers),
        scales=(head_dim**-0.5,) * layers,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        bos=next(iter(token_ids(config, "bos_token_id", vocab)), None),
        eos=token_ids(config, "eos_token_id", vocab),
    )


def activation(name: object) -> Activation:
    """The activation that a config calls `name`."""
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UsageError(
            f"activation {name!r} is not supported",
            where="config.json",
            mend=f"supported: {', '.join(sorted(_ACTIVATIONS))}",
        )
    return _ACTIVATIONS[name]


def refuse(config: Mapping[str, Any], *switches: str) -> None:
    """Raise UsageError where a switch is on that the family's description leaves out."""
    for switch in switches:
        if config.get(switch):
            raise UsageError(f"{switch} is not supported", where="config.json")


def number(config: Mapping[str, Any], key: str, default: float, *, least: float = -_MOST) -> float:
    """A number of a size that float32 holds, at least `least`."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or not least <= value <= _MOST:
        raise UsageError(f"{key} is {value!r}, not a number that fits", where="config.json")
    return float(value)


def positive(config: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """A number above zero; None where it is null."""
    value = config.get(key, default)
    if value is None:
        return None
    found = number(config, key, value)
    if found <= 0:
        raise UsageError(f"{key} is {value!r}, not above 0", where="config.json")
    return found


def fused(
    name: str, inputs: int, parts: Mapping[str, Sequence[range]], outputs: int, *, transposed: bool = False
) -> dict[str, View]:
    """Views of the projections `parts` in a projection `name` of `outputs`: their weights, and their biases where the
    model has any. transposed: it is stored as [in, out]."""
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    views: dict[str, View] = {}
    for part, runs in parts.items():
        views[f"{part}.weight"] = View(f"{name}.weight", shape, tuple(runs), transposed)
        views[f"{part}.bias"] = View(f"{name}.bias", (outputs,), tuple(runs))
    return views


def one_more(spec: DecoderSpec) -> dict[str, View]:
    """Views of all norms' weights as 1 + weight."""
    names, d = spec.names, spec.head_dim
    shapes = dict.fromkeys((names.norm, *names.layer_norms), (spec.hidden,))
    if spec.qk_norm is not None:
        shapes |= {names.q_norm: (d,), names.k_norm: (d,)}
    return {name: View(name, shape, (range(shape[0]),), add=1.0) for name, shape in shapes.items()}


def window_everywhere(config: Mapping[str, Any], layers: int) -> Windows:
    """`sliding_window` in every layer; null means that all attend to everything."""
    return (_window(config),) * layers


def window_in_some(config: Mapping[str, Any], layers: int) -> Windows:
    """Per-layer windows from `layer_types`, or from layer `max_window_layers` on; none unless `use_sliding_window`."""
    first = config.get("max_window_layers", 28)
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    if not isinstance(first, int):
        raise UsageError(f"max_window_layers is {first!r}, not a number of layers", where="config.json")
    return window_by_type(config, [i >= first for i in range(layers)])


def all_but_every(layers: int, period: int) -> list[bool]:
    """True but for every `period`-th layer."""
    return [bool((i + 1) % period) for i in range(layers)]


def window_by_type(config: Mapping[str, Any], default: Sequence[bool]) -> Windows:
    """Windows in the layers that slide: those that `layer_types` says, or `default`."""
    window = _window(config)
    return tuple(window if slides else None for slides in sliding(config, default))


def sliding(config: Mapping[str, Any], default: Sequence[bool]) -> list[bool]:
    """Which layers slide: those that `layer_types` says, or `default`."""
    types, layers = config.get("layer_types"), len(default)
    if types is None:
        return list(default)
    if not isinstance(types, list) or len(types) != layers or any(kind not in (_SLIDING, _FULL) for kind in types):
        raise UsageError(f"layer_types does not say for {layers} layers which slide", where="config.json")
    return [kind == _SLIDING for kind in types]


def ropes_by_type(
    config: Mapping[str, Any], head_dim: int, slides: Sequence[bool], theta: float, local: Mapping[str, float]
) -> tuple[Rope, ...]:
    """A rotation for layers that slide and one for the others, from `rope_parameters` by layer type, or from the older
    `rope_theta` (default: `theta`) and `rope_scaling`, which leave sliding layers their `local` settings."""
    nested = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    parts = [part.get(kind) or {} for part in (nested,) if isinstance(part, Mapping) for kind in (_SLIDING, _FULL)]
    if len(parts) != 2 or not all(isinstance(part, Mapping) for part in (*parts, scaling)):
        raise UsageError("the rope settings are not objects by layer type", where="config.json")
    plain = {"rope_type": "default"}
    settings = {"rope_theta": config.get("rope_theta", theta), **plain, **parts[1], **scaling}
    whole = rope_from_config(config, head_dim, settings=settings)
    near = rope_from_config(config, head_dim, settings={**local, **plain, **parts[0]})
    return tuple(near if kind else whole for kind in slides)


def _window(config: Mapping[str, Any]) -> int | None:
    return None if config.get("sliding_window") is None else size(config, "sliding_window", c.MAX_CONTEXT)


def size(config: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"{key} is {value!r}, not a number from 1 to {most}", where="config.json")
    return value


def token_ids(config: Mapping[str, Any], key: str, vocab: int) -> tuple[int, ...]:
    """One token id, several, or none."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or not 0 <= i < vocab for i in ids):
        raise UsageError(f"{key} is {value!r}, not ids from 0 to {vocab - 1}", where="config.json")
    return tuple(ids)
