"""DistilBERT: BERT's layers under other names, no token types, a ReLU before a text's classifier."""

from collections.abc import Mapping
from typing import Any

from eecompile import contract as c
from eecompile.student.encoder import EncoderNames, EncoderSpec
from eecompile.student.families.encoders import activation_of, heads_of, size_of, task_of

_LAYER = "distilbert.transformer.layer.{i}."
_EMBEDDINGS = "distilbert.embeddings."
NAMES = EncoderNames(
    words=f"{_EMBEDDINGS}word_embeddings",
    positions=f"{_EMBEDDINGS}position_embeddings",
    types="",
    embed_norm=f"{_EMBEDDINGS}LayerNorm",
    q=f"{_LAYER}attention.q_lin",
    k=f"{_LAYER}attention.k_lin",
    v=f"{_LAYER}attention.v_lin",
    o=f"{_LAYER}attention.out_lin",
    attention_norm=f"{_LAYER}sa_layer_norm",
    up=f"{_LAYER}ffn.lin1",
    down=f"{_LAYER}ffn.lin2",
    mlp_norm=f"{_LAYER}output_layer_norm",
    pooler="pre_classifier",
    classifier="classifier",
)
NORM_EPS = 1e-12  # not in its config


def describe(config: Mapping[str, Any]) -> EncoderSpec:
    """Sizes have names of their own (`dim`, `n_layers`, ...); sinusoidal positions are stored like learned ones."""
    task, labels = task_of(config)
    hidden = size_of(config, "dim", c.MAX_HIDDEN, 768)
    positions = size_of(config, "max_position_embeddings", c.MAX_CONTEXT, 512)
    return EncoderSpec(
        family="distilbert",
        task=task,
        labels=labels,
        layers=size_of(config, "n_layers", c.MAX_LAYERS, 6),
        hidden=hidden,
        heads=heads_of(config, "n_heads", hidden),
        intermediate=size_of(config, "hidden_dim", 1 << 20, 3072),
        vocab=size_of(config, "vocab_size", c.MAX_VOCAB, 30522),
        positions=positions,
        max_positions=positions,
        types=0,
        padding=None,
        norm_eps=NORM_EPS,
        activation=activation_of(config, "activation"),
        pooler=None if task == "token-classification" else "relu",
        names=NAMES,
    )
