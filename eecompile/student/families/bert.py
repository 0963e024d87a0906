"""BERT and what copies it (MiniLM, Rampart)."""

from collections.abc import Mapping
from typing import Any

from eecompile import contract as c
from eecompile.student.encoder import EncoderNames, EncoderSpec
from eecompile.student.families.encoders import (
    activation_of,
    epsilon_of,
    heads_of,
    refuse_decoding,
    size_of,
    task_of,
)

_LAYER = "encoder.layer.{i}."


def layered_names(root: str, pooler: str, classifier: str) -> EncoderNames:
    """BERT's tensor names under `root`, with the names of the classifier's parts."""
    layer, embeddings = root + _LAYER, root + "embeddings."
    return EncoderNames(
        words=f"{embeddings}word_embeddings",
        positions=f"{embeddings}position_embeddings",
        types=f"{embeddings}token_type_embeddings",
        embed_norm=f"{embeddings}LayerNorm",
        q=f"{layer}attention.self.query",
        k=f"{layer}attention.self.key",
        v=f"{layer}attention.self.value",
        o=f"{layer}attention.output.dense",
        attention_norm=f"{layer}attention.output.LayerNorm",
        up=f"{layer}intermediate.dense",
        down=f"{layer}output.dense",
        mlp_norm=f"{layer}output.LayerNorm",
        pooler=pooler,
        classifier=classifier,
    )


def describe(config: Mapping[str, Any]) -> EncoderSpec:
    """A tanh pooler over the first token stands before a text's classifier; a token's reads its hidden state."""
    refuse_decoding(config)
    task, labels = task_of(config)
    hidden = size_of(config, "hidden_size", c.MAX_HIDDEN, 768)
    positions = size_of(config, "max_position_embeddings", c.MAX_CONTEXT, 512)
    return EncoderSpec(
        family="bert",
        task=task,
        labels=labels,
        layers=size_of(config, "num_hidden_layers", c.MAX_LAYERS, 12),
        hidden=hidden,
        heads=heads_of(config, "num_attention_heads", hidden),
        intermediate=size_of(config, "intermediate_size", 1 << 20, 3072),
        vocab=size_of(config, "vocab_size", c.MAX_VOCAB, 30522),
        positions=positions,
        max_positions=positions,
        types=size_of(config, "type_vocab_size", 1024, 2),
        padding=None,
        norm_eps=epsilon_of(config, 1e-12),
        activation=activation_of(config, "hidden_act"),
        pooler=None if task == "token-classification" else "tanh",
        names=layered_names("bert.", "bert.pooler.dense", "classifier"),
    )
