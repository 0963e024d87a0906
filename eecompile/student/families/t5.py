"""T5, T5 1.1 and Flan-T5: an encoder and a decoder with relative positions, RMS norms and no biases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.encoder_decoder import EncoderDecoderSpec, RelativeBias
from eecompile.student.families.common import activation, number, size, token_ids
from eecompile.student.model import Activation, DecoderSpec, WeightNames


def describe(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """The first version scales the rows that its head gets by 1 / sqrt(D); later ones, with `tie_word_embeddings`
    false, do not, and neither does what says so by `scale_decoder_outputs`."""
    tied = config.get("tie_word_embeddings") is not False
    spec = encoder_decoder(config, tied=tied)
    scaled = config.get("scale_decoder_outputs", tied)
    return replace(spec, logit_scale=spec.hidden**-0.5) if scaled else spec


def encoder_decoder(config: Mapping[str, Any], *, tied: bool) -> EncoderDecoderSpec:
    """The shape that the family shares, without a scale of the logits. Raises UsageError where sizes do not fit."""
    layers = size(config, "num_layers", c.MAX_LAYERS, 6)
    encoder = _stack(config, "encoder", layers, tied)
    decoder = _stack(config, "decoder", size(config, "num_decoder_layers", c.MAX_LAYERS, layers), tied)
    relative = RelativeBias(
        size(config, "relative_attention_num_buckets", 4096, 32),
        size(config, "relative_attention_max_distance", 1 << 16, 128),
    )
    if relative.count < 4 or relative.distance <= relative.count // 2:
        what = f"{relative.count} buckets do not fit distances up to {relative.distance}"
        raise UsageError(what, where="config.json")
    named = [token_ids(config, key, decoder.vocab) for key in ("decoder_start_token_id", "pad_token_id")]
    start = next((ids[0] for ids in named if ids), 0)
    return EncoderDecoderSpec(**vars(decoder), encoder=encoder, relative=relative, start=start)


def _stack(config: Mapping[str, Any], stack: str, layers: int, tied: bool) -> DecoderSpec:
    heads, head_dim = size(config, "num_heads", c.MAX_HEADS, 8), size(config, "d_kv", 4096, 64)
    vocab = size(config, "vocab_size", c.MAX_VOCAB, 32128)
    gated, act = _feed_forward(config)
    return DecoderSpec(
        family=str(config["model_type"]), layers=layers, hidden=size(config, "d_model", c.MAX_HIDDEN, 512),
        heads=heads, kv_heads=heads, head_dim=head_dim, intermediate=size(config, "d_ff", 1 << 20, 2048), vocab=vocab,
        max_positions=c.MAX_CONTEXT, norm_eps=number(config, "layer_norm_epsilon", 1e-6, least=0), activation=act,
        ropes=(None,) * layers, windows=(None,) * layers, scales=(1.0,) * layers, tied=tied, qkv_bias=False,
        o_bias=False, mlp_bias=False, gated=gated, eos=token_ids({"eos_token_id": 1, **config}, "eos_token_id", vocab),
        names=_names(stack, gated), prefix="",
    )  # fmt: skip


def _feed_forward(config: Mapping[str, Any]) -> tuple[bool, Activation]:
    """`feed_forward_proj`: an activation, or "gated-" and one; "gated-gelu" means the approximation by tanh."""
    name = config.get("feed_forward_proj", "relu")
    gated = isinstance(name, str) and name.startswith("gated-")
    return gated, "gelu_tanh" if name == "gated-gelu" else activation(name[len("gated-") :] if gated else name)


def _names(stack: str, gated: bool) -> WeightNames:
    layer = f"{stack}.block.{{i}}.layer"
    attention, mlp = f"{layer}.0.SelfAttention", f"{layer}.{2 if stack == 'decoder' else 1}"
    return WeightNames(
        embed="shared.weight",
        norm=f"{stack}.final_layer_norm.weight",
        attention_norm=f"{layer}.0.layer_norm.weight",
        q=f"{attention}.q",
        k=f"{attention}.k",
        v=f"{attention}.v",
        o=f"{attention}.o",
        mlp_norm=f"{mlp}.layer_norm.weight",
        gate=f"{mlp}.DenseReluDense.wi_0",
        up=f"{mlp}.DenseReluDense.{'wi_1' if gated else 'wi'}",
        down=f"{mlp}.DenseReluDense.wo",
    )
