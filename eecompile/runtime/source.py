"""Prompts of an encoder-decoder are sources: encoded once a request, into what every decoder layer attends to."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest, ModelInfo
from eecompile.engines.interface import Buffers, Engine

Encoded: TypeAlias = Buffers


def read_prompt(manifest: Manifest, encoder: Engine | None, prompt: list[int]) -> tuple[list[int], Encoded]:
    """The tokens that the decoder runs first and what its segments take besides, by name: the prompt and nothing; of an
    encoder-decoder the start token and what its encoder makes of the prompt."""
    if manifest.source is None or encoder is None:
        return prompt, {}
    return [manifest.source.start], encode_source(encoder, manifest.model, prompt)


def first_tokens(manifest: Manifest, prompt: int) -> int:
    """How many tokens go through the decoder before the first new one, for `prompt` tokens of prompt."""
    return prompt if manifest.source is None else 1


def sequence(
    manifest: Manifest, prompt: Sequence[int], continuation: Sequence[int]
) -> tuple[list[int], list[int] | None]:
    """The tokens that go through the decoder for a prompt and what follows it, and their source (None: has none)."""
    if manifest.source is None:
        return [*prompt, *continuation], None
    return [manifest.source.start, *continuation], list(prompt)


def encode_source(encoder: Engine, model: ModelInfo, ids: Sequence[int]) -> Encoded:
    """Run the encoder over `ids`; returns what the segments take by name: keys and values [1, H, E, d] of each layer's
    cross-attention, and source_length [1].

    E is the length padded to a multiple of the bucket, so that no product has a single row. Memory: 2 L H E d float32.
    """
    length = -(-len(ids) // c.CACHE_BUCKET) * c.CACHE_BUCKET
    memory = encoder.memory
    padded, counted = memory.rows((1, length), np.int64), memory.rows((1,), np.int64)
    padded[0, : len(ids)], counted[0] = ids, len(ids)
    given = {t.name: memory.cache((1, model.heads, length, model.head_dim), t.dtype) for t in encoder.info.outputs}
    encoder.bind({c.TOKEN_IDS: padded, c.SOURCE_LENGTH: counted, **given})()
    return {c.SOURCE_LENGTH: counted, **given}
