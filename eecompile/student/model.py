"""What a decoder is made of, as plain values: the one description that every stage works from.

A model family (families/) reads a Hugging Face config into a `DecoderSpec`; the graph writer and the reference
model read nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from eecompile.student.rope import Rope
from eecompile.student.store import View

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Norm = Literal["rms", "layer"]
QKNorm = Literal["head", "whole"]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightNames:
    """Names of the weights; `{i}` is the layer. Projections have ".weight" and, where the spec says so, ".bias".

    They are the checkpoint's own names, except where it keeps a weight in another form (`DecoderSpec.sources`). A norm
    is where its name is: before attention or MLP (`attention_norm`, `mlp_norm`), on what they add (`.._post_norm`).
    """

    embed: str = "model.embed_tokens.weight"
    positions: str | None = None
    norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    head_bias: str | None = None
    attention_norm: str | None = "model.layers.{i}.input_layernorm.weight"
    attention_post_norm: str | None = None
    q: str = "model.layers.{i}.self_attn.q_proj"
    k: str = "model.layers.{i}.self_attn.k_proj"
    v: str = "model.layers.{i}.self_attn.v_proj"
    o: str = "model.layers.{i}.self_attn.o_proj"
    q_norm: str = "model.layers.{i}.self_attn.q_norm.weight"
    k_norm: str = "model.layers.{i}.self_attn.k_norm.weight"
    mlp_norm: str | None = "model.layers.{i}.post_attention_layernorm.weight"
    mlp_post_norm: str | None = None
    gate: str = "model.layers.{i}.mlp.gate_proj"
    up: str = "model.layers.{i}.mlp.up_proj"
    down: str = "model.layers.{i}.mlp.down_proj"

    @property
    def layer_norms(self) -> list[str]:
        """The norms over the hidden state that a layer has."""
        norms = (self.attention_norm, self.attention_post_norm, self.mlp_norm, self.mlp_post_norm)
        return [name for name in norms if name is not None]


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Sizes: hidden D, heads H, kv_heads KV, head_dim d (not always D / H), intermediate F, vocab V.
    Per layer: `windows` in tokens, the token itself included (None: everything before), `ropes` (None: no rotation),
    `scales` of attention's scores; `softcap` bounds them, as `logit_softcap` does the logits: c * tanh(x / c).
    Norms: mean and bias as well with "layer"; queries and keys are normalised by the head or over the whole projection.
    `parallel`: the MLP reads the layer's input, not attention's result; without a norm of its own, attention's norm.
    `gated`: down(act(gate) * up), otherwise down(act(up)). The scales multiply the embeddings, what attention and MLP
    add, and the logits. `prefix` is what base-model checkpoints leave out before tensor names.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    norm_eps: float
    activation: Activation
    ropes: tuple[Rope | None, ...]
    windows: tuple[int | None, ...]
    scales: tuple[float, ...]
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: QKNorm | None = None
    norm: Norm = "rms"
    norm_bias: bool = False
    parallel: bool = False
    gated: bool = True
    softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()
    names: WeightNames = field(default_factory=WeightNames)
    sources: Mapping[str, View] = field(default_factory=dict)
    prefix: str = "model."

    @property
    def head_weight(self) -> str:
        """Name of the [V, D] matrix that the LM head multiplies by."""
        return self.names.embed if self.tied else self.names.head

    def at_context(self, context: int) -> "DecoderSpec":
        """The model as a build for `context` positions has it: rotary frequencies that depend on it are chosen."""
        return replace(self, ropes=tuple(None if rope is None else rope.at_context(context) for rope in self.ropes))

    def layer_shapes(self, layer: int) -> Shapes:
        """Every weight that decoder layer `layer` needs, by name, with its shape [out, in]."""
        return {name.format(i=layer): shape for name, shape in self._layer_templates().items()}

    def outer_shapes(self) -> Shapes:
        """The weights outside the layers: embeddings, final norm and head."""
        n, shapes = self.names, self._norm_shapes([self.names.norm])
        shapes = {n.embed: (self.vocab, self.hidden), **shapes}
        if n.positions:
            shapes[n.positions] = (self.max_positions, self.hidden)
        if not self.tied:
            shapes[n.head] = (self.vocab, self.hidden)
        if n.head_bias:
            shapes[n.head_bias] = (self.vocab,)
        return shapes

    def shapes(self) -> Shapes:
        """Every weight of the model, by name."""
        shapes = self.outer_shapes()
        for layer in range(self.layers):
            shapes |= self.layer_shapes(layer)
        return shapes

    def views(self) -> dict[str, View]:
        """The weights that the checkpoint keeps in another form, by name."""
        return {
            name.format(i=i): replace(view, tensor=view.tensor.format(i=i))
            for i in range(self.layers)
            for name, view in self.sources.items()
        }

    def tensors(self) -> Shapes:
        """Every tensor that a checkpoint has to hold, with the shape that it has there."""
        views = self.views()
        stored: Shapes = {}
        for name, shape in self.shapes().items():
            view = views.get(name)
            stored |= {name: shape} if view is None else {view.tensor: view.shape}
        return stored

    def _layer_templates(self) -> Shapes:
        n, d, f = self.names, self.hidden, self.intermediate
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linear = {
            n.q: (q, d, self.qkv_bias), n.k: (kv, d, self.qkv_bias), n.v: (kv, d, self.qkv_bias),
            n.o: (d, q, self.o_bias), n.gate: (f, d, self.mlp_bias), n.up: (f, d, self.mlp_bias),
            n.down: (d, f, self.mlp_bias),
        }  # fmt: skip
        if not self.gated:
            del linear[n.gate]
        shapes = self._norm_shapes(n.layer_norms)
        for name, (rows, columns, bias) in linear.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        if self.qk_norm is not None:
            whole = self.qk_norm == "whole"
            shapes |= {n.q_norm: (q if whole else self.head_dim,), n.k_norm: (kv if whole else self.head_dim,)}
        return shapes

    def _norm_shapes(self, names: list[str]) -> Shapes:
        shapes: Shapes = {}
        for name in names:
            shapes[name] = (self.hidden,)
            if self.norm_bias:
                shapes[bias_name(name)] = (self.hidden,)
        return shapes


def bias_name(weight: str) -> str:
    """The name of the bias that belongs to a weight."""
    return weight.removesuffix(".weight") + ".bias"
