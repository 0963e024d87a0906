"""The source of an encoder-decoder: encoded once a request, into what every decoder layer attends to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import ModelInfo
from eecompile.engines.ort import OrtEngine


def encode_source(engine: OrtEngine, model: ModelInfo, ids: Sequence[int]) -> Mapping[str, NDArray[Any]]:
    """Run the encoder over `ids`; returns what the segments take by name: keys and values [1, H, E, d] of each layer's
    cross-attention, and source_length [1].

    E is the length padded to a multiple of the bucket, so that no product has a single row. Memory: 2 L H E d float32.
    """
    length = -(-len(ids) // c.CACHE_BUCKET) * c.CACHE_BUCKET
    padded = np.zeros((1, length), np.int64)
    padded[0, : len(ids)] = ids
    buffers: dict[str, NDArray[Any]] = {
        tensor.name: np.zeros((1, model.heads, length, model.head_dim), np.float32) for tensor in engine.info.outputs
    }
    buffers |= {c.TOKEN_IDS: padded, c.SOURCE_LENGTH: np.array([len(ids)], np.int64)}
    engine.bind(buffers)()
    del buffers[c.TOKEN_IDS]
    return buffers
