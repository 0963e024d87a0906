"""Memory: what is resident stays where it is however many tokens are decoded, and a session's caches are given back."""

import gc
from typing import Any

import numpy as np
import psutil
import pytest
import tiny

from eecompile.runtime import Bundle, Sampling

MIB = 1 << 20
EXACT = {1: {"max_prob": 0.2}, 2: None, 3: {"max_prob": 0.02}}


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def decode(opened: Bundle, tokens: int, seed: int) -> None:
    """Requests of all kinds, in three lasting sessions, until `tokens` were decoded."""
    rng = np.random.default_rng(seed)
    sessions = [opened.session(), opened.session(mode="exact", thresholds=EXACT), opened.session(mode="exact")]
    done = 0
    while done < tokens:
        prompt = rng.integers(0, tiny.VOCAB, int(rng.integers(1, 140))).tolist()
        how = Sampling(temperature=0.8, top_k=20, seed=done) if done % 2 else Sampling()
        for session in sessions:
            done += sum(1 for _ in session.generate(prompt, max_new_tokens=100, sampling=how))


def assert_flat(opened: Bundle, warm: int, tokens: int) -> None:
    decode(opened, warm, seed=0)
    before = resident()
    decode(opened, tokens, seed=1)
    assert resident() - before < 2 * MIB


def test_memory_is_flat(shelf: Any) -> None:
    assert_flat(shelf.bundle(at=[1, 2, 3], gain=0.35), 3_000, 9_000)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_memory_is_flat_for_a_hundred_thousand_tokens(shelf: Any, precision: str) -> None:
    assert_flat(shelf.bundle(at=[1, 2, 3], precision=precision, gain=0.35), 10_000, 100_000)


def test_sessions_that_are_gone_take_nothing(shelf: Any) -> None:
    """A session with a long sequence holds its caches; dropping it gives them back."""
    opened = shelf.bundle(tiny.config(max_position_embeddings=2048), at=[2])
    prompt = [1] * 1500
    cache = 2 * 4 * 2 * 8 * 1500 * 4  # key and value, layers, heads, size, tokens, bytes
    tiny.tokens(opened, prompt, 2)
    before = resident()
    for _ in range(12):
        tiny.tokens(opened, prompt, 2)
    assert resident() - before < 3 * cache
