"""K/V-only graphs of every family: what they write is what a segment writes where it reads the same hidden states."""

from typing import Any

import numpy as np
import pytest
import tiny

from eecompile import contract as c

ROWS, LENGTH = 5, 32


@pytest.mark.parametrize("name", tiny.variants())
def test_a_segments_first_layer(shelf: Any, name: str) -> None:
    """Only the first layer of a segment reads the state that the token left with; deeper ones are approximate."""
    opened = shelf.bundle(tiny.variants()[name], [2], build={"kv": ("catch_up", "propagate")})
    model, rng = opened.manifest.model, np.random.default_rng(0)
    hidden = rng.standard_normal((1, ROWS, model.hidden)).astype(np.float32)
    shared = {c.HIDDEN: hidden, c.POSITIONS: np.arange(3, 3 + ROWS)[None], c.WRITE_INDEX: np.array([3])}
    written = []
    for engine in (opened.graphs.kv[1], opened.graphs.segments[1]):
        buffers: dict[str, Any] = dict(shared)
        for tensor in engine.info.inputs:
            if tensor.name not in buffers:
                shape = (1, model.kv_heads, LENGTH, model.head_dim)
                buffers[tensor.name] = buffers[c.updated(tensor.name)] = np.zeros(shape, np.float32)
        buffers[c.HIDDEN_OUT] = np.zeros_like(hidden)
        engine.bind(buffers)()
        written.append([buffers[c.cache_name(kind, 0)][:, :, 3 : 3 + ROWS] for kind in ("key", "value")])
    for skipped, run in zip(*written, strict=True):
        assert np.abs(run).max() > 0.1
        np.testing.assert_allclose(skipped, run, atol=1e-5 * np.abs(run).max(), rtol=1e-4)
