"""Tiny encoder-decoders, and what transformers makes of a source and a target. The configs are of both T5 versions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tiny

SOURCES = [np.random.default_rng(seed).integers(2, tiny.VOCAB, n).tolist() for seed, n in enumerate((1, 16, 17, 90))]


def t5(family: str = "t5", **changes: Any) -> tiny.Config:
    """config.json of two encoder and four decoder layers; heads are not D / H wide, distances end early."""
    settings = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": family, "is_encoder_decoder": True,
        "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 4, "num_heads": 4,
        "vocab_size": tiny.VOCAB, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "layer_norm_epsilon": 1e-2, "feed_forward_proj": "relu", "decoder_start_token_id": 0, "pad_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": True, "use_cache": False,
    }  # fmt: skip
    return {**settings, **changes}


def newer(**changes: Any) -> tiny.Config:
    """T5 1.1, as Flan-T5: a gated MLP and a head of its own."""
    return t5(**{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **changes})


def variants() -> dict[str, tiny.Config]:
    """What T5 checkpoints differ in."""
    return {
        "t5": t5(),
        "t5-published-distances": t5(relative_attention_num_buckets=32, relative_attention_max_distance=128),
        "t5-1.1": newer(),
        "t5-1.1-start": newer(decoder_start_token_id=5, num_layers=5, num_decoder_layers=5),
        "t5-silu": t5(feed_forward_proj="gated-silu", scale_decoder_outputs=False),
        "mt5": newer(family="mt5", d_kv=8, num_heads=2),
    }


def states(model: Any, source: Sequence[int], target: Sequence[int]) -> tuple[list[tiny.Float], tiny.Float]:
    """The decoder's hidden states [R, D] after 0, 1, .. layers, the last one normalised, and its logits [R, V]."""
    import torch

    with torch.inference_mode():
        out = model(
            torch.tensor([list(source)]), decoder_input_ids=torch.tensor([list(target)]), output_hidden_states=True
        )
    return [rows[0].numpy() for rows in out.decoder_hidden_states], out.logits[0].numpy()


def tokens(model: Any, source: Sequence[int], count: int) -> list[int]:
    """What the model says to a source, greedily, end-of-sequence ignored; its own `generate` keeps caches for as many
    decoder layers as the encoder has."""
    import torch

    ids = [model.config.decoder_start_token_id or 0]
    with torch.inference_mode():
        encoded = model.get_encoder()(torch.tensor([list(source)]))
        for _ in range(count):
            out = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids]))
            ids.append(int(out.logits[0, -1].argmax()))
    return ids[1:]
