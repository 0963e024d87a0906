"""What a decoder is made of, as plain values: the one description that every stage works from.

A model family (families/) reads a Hugging Face config into a `DecoderSpec`; the graph writer and the reference
model read nothing else.
"""

from dataclasses import dataclass, field
from typing import Literal

from eecompile.student.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class WeightNames:
    """Checkpoint tensor names; `{i}` is the layer. Projections have ".weight" and, where the spec says so, ".bias"."""

    embed: str = "model.embed_tokens.weight"
    norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    attention_norm: str = "model.layers.{i}.input_layernorm.weight"
    q: str = "model.layers.{i}.self_attn.q_proj"
    k: str = "model.layers.{i}.self_attn.k_proj"
    v: str = "model.layers.{i}.self_attn.v_proj"
    o: str = "model.layers.{i}.self_attn.o_proj"
    q_norm: str = "model.layers.{i}.self_attn.q_norm.weight"
    k_norm: str = "model.layers.{i}.self_attn.k_norm.weight"
    mlp_norm: str = "model.layers.{i}.post_attention_layernorm.weight"
    gate: str = "model.layers.{i}.mlp.gate_proj"
    up: str = "model.layers.{i}.mlp.up_proj"
    down: str = "model.layers.{i}.mlp.down_proj"


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer with pre-norm RMS normalisation, rotary positions and a gated MLP.

    hidden D, heads H, kv_heads KV, head_dim d (not always D / H), intermediate F, vocab V. `windows[i]` is layer
    i's sliding window in tokens, the token itself included; None attends to everything before.
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
    rope: Rope
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    bos: int | None = None
    eos: tuple[int, ...] = ()
    names: WeightNames = field(default_factory=WeightNames)

    @property
    def head_weight(self) -> str:
        """Checkpoint name of the [V, D] matrix that the LM head multiplies by."""
        return self.names.embed if self.tied else self.names.head

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Every tensor that decoder layer `layer` needs, by checkpoint name, with its shape [out, in]."""
        n, d, f = self.names, self.hidden, self.intermediate
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linear = {
            n.q: (q, d, self.qkv_bias), n.k: (kv, d, self.qkv_bias), n.v: (kv, d, self.qkv_bias),
            n.o: (d, q, self.o_bias), n.gate: (f, d, self.mlp_bias), n.up: (f, d, self.mlp_bias),
            n.down: (d, f, self.mlp_bias),
        }  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {n.attention_norm: (d,), n.mlp_norm: (d,)}
        for name, (rows, columns, bias) in linear.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        if self.qk_norm:
            shapes |= {n.q_norm: (self.head_dim,), n.k_norm: (self.head_dim,)}
        return {name.format(i=layer): shape for name, shape in shapes.items()}

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors outside the layers: embedding, final norm and head."""
        shapes: dict[str, tuple[int, ...]] = {
            self.names.embed: (self.vocab, self.hidden),
            self.names.norm: (self.hidden,),
        }
        if not self.tied:
            shapes[self.names.head] = (self.vocab, self.hidden)
        return shapes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by checkpoint name."""
        shapes = self.outer_shapes()
        for layer in range(self.layers):
            shapes |= self.layer_shapes(layer)
        return shapes
