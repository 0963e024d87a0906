"""What an encoder-decoder is made of: a decoder that also attends to what an encoder made of the source (T5).

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020), section 2.1:
positions enter as a bias on attention's scores, learned for buckets of distances, one table a stack.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from eecompile.student.model import DecoderSpec, Shapes


@dataclass(frozen=True)
class RelativeBias:
    """Buckets of distances: `count` of them; all distances from `distance` on share the last one."""

    count: int
    distance: int

    def buckets(self, *, both: bool) -> NDArray[np.int64]:
        """The bucket of key position - query position, from -distance to distance: int64 [2 x distance + 1].

        both: keys on both sides are told apart, with half of the buckets each; otherwise keys behind the query are
        what counts. Half of a side's buckets are single distances, the others grow with the logarithm; it is taken in
        float32, as the model was trained, since a rounding decides where the argument is a whole number.
        """
        relative = np.arange(-self.distance, self.distance + 1)
        side = self.count // 2 if both else self.count
        away, exact = np.abs(relative) if both else np.maximum(-relative, 0), side // 2
        share = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
        share = share / np.float32(np.log(self.distance / exact)) * np.float32(side - exact)
        grown = np.minimum(exact + share.astype(np.int64), side - 1)
        return np.where(away < exact, away, grown) + (side * (relative > 0) if both else 0)


@dataclass(frozen=True)
class CrossNames:
    """Names of what an encoder-decoder has besides two stacks of layers; `{i}` is the decoder's layer."""

    norm: str = "decoder.block.{i}.layer.1.layer_norm.weight"
    q: str = "decoder.block.{i}.layer.1.EncDecAttention.q"
    k: str = "decoder.block.{i}.layer.1.EncDecAttention.k"
    v: str = "decoder.block.{i}.layer.1.EncDecAttention.v"
    o: str = "decoder.block.{i}.layer.1.EncDecAttention.o"
    bias: str = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    encoder_bias: str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderSpec(DecoderSpec):
    """The decoder, as DecoderSpec has it, whose layers attend to the encoder's output between attention and MLP.

    encoder: the encoder's layers, of the decoder's widths, with embeddings in common. start: the token that a target
    begins with. Cross-attention has as many heads as self-attention, without biases, scales or positions.
    """

    encoder: DecoderSpec
    relative: RelativeBias
    start: int
    cross: CrossNames = field(default_factory=CrossNames)

    def at_context(self, context: int) -> "EncoderDecoderSpec":
        """Nothing here depends on the context."""
        return self

    def with_own_head(self) -> "EncoderDecoderSpec":
        """The same model with a head beside the embeddings; whether it scales its logits is not changed by that."""
        return replace(self, tied=False)

    def outer_shapes(self) -> Shapes:
        """The weights outside the decoder's layers: the encoder's, and the tables of both stacks, too."""
        table = (self.relative.count, self.heads)
        shapes = {**super().outer_shapes(), self.encoder.names.norm: (self.hidden,)}
        for layer in range(self.encoder.layers):
            shapes |= self.encoder.layer_shapes(layer)
        return {**shapes, self.cross.bias: table, self.cross.encoder_bias: table}

    def _layer_templates(self) -> Shapes:
        n, inner = self.cross, self.heads * self.head_dim
        shapes = {f"{name}.weight": (inner, self.hidden) for name in (n.q, n.k, n.v)}
        return {**super()._layer_templates(), n.norm: (self.hidden,), f"{n.o}.weight": (self.hidden, inner), **shapes}
