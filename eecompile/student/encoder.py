"""What an encoder with a classifier is made of, as plain values: the counterpart of model.py's `DecoderSpec`.

A family (families/bert.py and its like) reads a Hugging Face config into an `EncoderSpec`; the graph writer and the
reference model read nothing else.
"""

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["sequence-classification", "token-classification", "regression"]
EncoderActivation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class EncoderNames:
    """Checkpoint names without ".weight" and ".bias"; `{i}` is the layer. The embeddings have weights only."""

    words: str
    positions: str
    types: str
    embed_norm: str
    q: str
    k: str
    v: str
    o: str
    attention_norm: str
    up: str
    down: str
    mlp_norm: str
    pooler: str
    classifier: str


@dataclass(frozen=True)
class EncoderSpec:
    """A bidirectional transformer with post-norm LayerNorm, learned positions, a plain MLP, and a classifier.

    hidden D, heads H, intermediate F, vocab V. max_positions: tokens of the longest text. types: rows of the token type
    table, 0 where there is none. padding: the id whose positions the family skips (positions then begin at padding +
    1, as RoBERTa's); None where the first position is 0. pooler: the activation between the pooler and the classifier;
    None where the classifier reads the hidden state itself. labels: names in the classifier's order; a regression has
    one.
    """

    family: str
    task: Task
    labels: tuple[str, ...]
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    max_positions: int
    types: int
    padding: int | None
    norm_eps: float
    activation: EncoderActivation
    pooler: EncoderActivation | None
    names: EncoderNames = field(repr=False)

    @property
    def head_dim(self) -> int:
        """d, of each head."""
        return self.hidden // self.heads

    @property
    def per_token(self) -> bool:
        """Whether every token has a label of its own; otherwise the first token stands for the text."""
        return self.task == "token-classification"

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Every tensor that layer `layer` needs, by checkpoint name, with its shape ([out, in] for a matrix)."""
        n, d, f = self.names, self.hidden, self.intermediate
        linear = {n.q: (d, d), n.k: (d, d), n.v: (d, d), n.o: (d, d), n.up: (f, d), n.down: (d, f)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in (n.attention_norm, n.mlp_norm):
            shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
        return {name.format(i=layer): shape for name, shape in shapes.items()}

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors outside the layers: embeddings, pooler where there is one, classifier."""
        n, d, labels = self.names, self.hidden, len(self.labels)
        shapes: dict[str, tuple[int, ...]] = {
            f"{n.words}.weight": (self.vocab, d),
            f"{n.positions}.weight": (self.positions, d),
            f"{n.embed_norm}.weight": (d,),
            f"{n.embed_norm}.bias": (d,),
        }
        if self.types:
            shapes[f"{n.types}.weight"] = (self.types, d)
        if self.pooler is not None:
            shapes |= {f"{n.pooler}.weight": (d, d), f"{n.pooler}.bias": (d,)}
        return shapes | {f"{n.classifier}.weight": (labels, d), f"{n.classifier}.bias": (labels,)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by checkpoint name."""
        shapes = self.outer_shapes()
        for layer in range(self.layers):
            shapes |= self.layer_shapes(layer)
        return shapes
