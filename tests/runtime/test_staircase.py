"""The staircase: whatever exits, waits, rolls back or catches up, every row and every cache is the full model's, to the
bit; and a row's bits do not depend on the pass that it ran in.
"""

from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.runtime import Bundle, pool
from eecompile.runtime.heads import Head
from eecompile.runtime.staircase import Staircase

EXITS = [1, 2, 3]
STEPS = len(EXITS) + 1
CAP = 8
SHAPES = {  # head sharing and head size decide which kernels run
    "groups-of-2": tiny.config(),
    "groups-of-1": tiny.config(num_key_value_heads=4),
    "groups-of-4": tiny.config(num_key_value_heads=1),
    "window": tiny.config("mistral", sliding_window=20),
    "large": tiny.config(
        hidden_size=288, intermediate_size=416, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    ),
    "wide": tiny.config("qwen3", head_dim=64, num_attention_heads=3, num_key_value_heads=1),
}
BUILDS = [
    *((precision, 1, "fp32") for precision in tiny.PRECISIONS),
    ("fp32", 3, "fp32"),
    ("int8", 2, "fp32"),
    ("fp32", 1, "fp16"),
    ("int4", 1, "int8"),
]
TOKENS = st.integers(0, tiny.VOCAB - 1)
MOVES = st.one_of(
    st.tuples(st.just("stop"), st.integers(0, STEPS - 1), TOKENS),  # run a token through this many steps and one more
    st.tuples(st.just("flush"), st.just(0), st.just(0)),
    st.tuples(st.just("rewind"), st.integers(1, 12), st.just(0)),
)


def staircase(opened: Bundle) -> Staircase:
    return Staircase(opened.manifest, opened.graphs)


class Walk:
    """A staircase that is moved by hand, with the tokens and finished rows that it should stand for."""

    def __init__(self, opened: Bundle, prompt: list[int]) -> None:
        self.stairs, self.tokens = staircase(opened), list(prompt)
        self.finished: list[Any] = [None] * len(prompt)
        self.finished[-1] = self.stairs.prefill(prompt)[0].copy()

    def stop(self, depth: int, token: int) -> None:
        """Append a token and let it exit after `depth` + 1 steps; at the cap it runs to full depth."""
        full = self.stairs.pending >= CAP or depth == STEPS - 1
        self.stairs.append([token])
        self.tokens.append(token)
        self.finished.append(None)
        for k in range(STEPS if full else depth + 1):
            rows = self.stairs.run_step(k)
        if full:
            self._finish(rows)

    def flush(self, *_: int) -> None:
        if self.stairs.pending:
            self._finish(self.stairs.run_full())

    def rewind(self, count: int, _: int) -> None:
        """Drop up to `count` tokens, none of the prompt's first and none before one that is pending."""
        length = max(1, self.stairs.filled[0] - count)
        if self.stairs.pending:
            length = min(length, self.stairs.filled[-1])
        self.stairs.rewind(length)
        del self.tokens[length:], self.finished[length:]

    def _finish(self, rows: Any) -> None:
        for i, row in enumerate(rows.copy()):
            position = len(self.tokens) - len(rows) + i
            assert self.finished[position] is None
            self.finished[position] = row


def assert_is_a_full_pass(walk: Walk, opened: Bundle) -> None:
    """Every cache row that is filled, and every finished row, is what one pass over the tokens computes."""
    whole = staircase(opened)
    whole.append(walk.tokens)
    rows = whole.run_full()
    lengths = walk.stairs.filled
    assert walk.stairs.length == len(walk.tokens) == lengths[0]
    assert lengths == sorted(lengths, reverse=True)
    for mine, theirs in zip(tiny.caches(walk.stairs, lengths), tiny.caches(whole, lengths), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for row, expected in zip(walk.finished, rows, strict=True):
        if row is not None:
            np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize(("precision", "padded", "cache"), BUILDS)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    prompt=st.lists(TOKENS, min_size=1, max_size=70),
    moves=st.lists(MOVES, min_size=1, max_size=40),
)
@settings(max_examples=25)
def test_any_walk_is_a_full_pass(
    shelf: Any,
    precision: str,
    padded: int,
    cache: str,
    shape: str,
    prompt: list[int],
    moves: list[tuple[str, int, int]],
) -> None:
    opened = shelf.bundle(SHAPES[shape], EXITS, precision=precision, minimum_rows=padded, build={"cache": cache})
    walk = Walk(opened, prompt)
    for kind, number, token in moves:
        getattr(walk, kind)(number, token)
    assert_is_a_full_pass(walk, opened)
    walk.flush()
    assert_is_a_full_pass(walk, opened)


@pytest.mark.parametrize(("precision", "padded", "cache"), BUILDS)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 1 << 30),
    widths=st.lists(st.sampled_from([1, 1, 1, 2, 3, 5, 8, 9, 31, 64, 128]), min_size=1, max_size=14),
)
@settings(max_examples=15)
def test_bits_do_not_depend_on_the_pass(
    shelf: Any, precision: str, padded: int, cache: str, shape: str, seed: int, widths: list[int]
) -> None:
    """Logits of a sequence are the same computed in any chunks and by the row."""
    opened = shelf.bundle(
        SHAPES[shape], EXITS, precision=precision, context=160, minimum_rows=padded, build={"cache": cache}
    )
    widths = [w for i, w in enumerate(widths) if sum(widths[: i + 1]) <= 160] or [1]
    ids = np.random.default_rng(seed).integers(0, tiny.VOCAB, sum(widths)).tolist()
    found = []
    for chunks in (widths, [1] * len(ids), [128, len(ids) - 128] if len(ids) > 128 else [len(ids)]):
        stairs, rows, start = staircase(opened), [], 0
        for width in chunks:
            stairs.append(ids[start : start + width])
            rows.append(logits(opened, stairs.run_full()))
            start += width
        found.append(np.concatenate(rows))
    assert found[0].shape == (len(ids), tiny.VOCAB)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def logits(opened: Bundle, rows: Any) -> Any:
    """The head's logits, asked for in two halves, since they too must not depend on how many rows are asked."""
    m = opened.manifest
    head = Head(opened.graphs.head, m.model.hidden, m.model.vocab, 128, m.minimum_rows)
    middle = len(rows) // 3
    parts = [np.array(head(part, logits=True).logits) for part in (rows[:middle], rows[middle:]) if len(part)]
    return np.concatenate(parts)


def test_pending_counts_what_is_not_deep(shelf: Any) -> None:
    stairs = staircase(shelf.bundle(at=EXITS))
    stairs.prefill([1, 2, 3])
    assert (stairs.filled, stairs.length, stairs.pending) == ([3, 3, 3, 3], 3, 0)
    stairs.append([4])
    stairs.run_step(0)
    assert (stairs.filled, stairs.length, stairs.pending) == ([4, 3, 3, 3], 4, 1)
    stairs.append([5])
    stairs.run_step(0)
    rows = stairs.run_step(1)
    assert len(rows) == 2
    assert (stairs.filled, stairs.pending) == ([5, 5, 3, 3], 2)
    assert len(stairs.run_full()) == 2
    assert (stairs.filled, stairs.pending) == ([5, 5, 5, 5], 0)


def test_passes_and_layer_rows_are_counted(shelf: Any) -> None:
    stairs = staircase(shelf.bundle(at=[1, 3]))
    stairs.prefill([1] * 130)
    assert (stairs.passes, stairs.layer_rows) == (6, 130 * 4)
    stairs.append([2])
    stairs.run_step(0)
    stairs.append([3])
    stairs.run_step(0)
    stairs.run_step(1)
    assert (stairs.passes, stairs.layer_rows) == (9, 130 * 4 + 1 + 1 + 2 * 2)
    stairs.reset()
    assert (stairs.passes, stairs.layer_rows, stairs.length) == (0, 0, 0)


@pytest.mark.parametrize("length", [4, 5, 6, 9, -1])
def test_a_rewind_that_would_lose_pending_rows_is_a_bug(shelf: Any, length: int) -> None:
    """Five tokens, of which the last two are pending at the second step: only lengths up to three can be kept."""
    stairs = staircase(shelf.bundle(at=EXITS))
    stairs.prefill([1, 2, 3])
    for token in (4, 5):
        stairs.append([token])
        stairs.run_step(0)
    with pytest.raises(ValueError, match=f"length {length}"):
        stairs.rewind(length)
    stairs.rewind(3)
    assert (stairs.filled, stairs.pending) == ([3, 3, 3, 3], 0)


def test_caches_grow_with_the_sequence_and_long_ones_are_freed(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stairs = staircase(shelf.bundle(at=EXITS, context=200))
    assert stairs.caches.rows == 0
    sizes = []
    for token in range(200):
        stairs.append([token % tiny.VOCAB])
        stairs.run_full()
        sizes.append(stairs.caches.rows)
    assert all(rows >= n + 1 for n, rows in enumerate(sizes))
    assert all(rows <= 64 * (1 + n // 64) * 9 / 8 + 64 for n, rows in enumerate(sizes))
    assert all(rows % c.CACHE_BUCKET == 0 for rows in sizes)
    monkeypatch.setattr(pool, "KEPT_ROWS", sizes[-1])
    stairs.reset()
    assert stairs.caches.rows == sizes[-1]
    assert not any(tensor.any() for tensors in stairs.caches.tensors for tensor in tensors.values())
    monkeypatch.setattr(pool, "KEPT_ROWS", sizes[-1] - 1)
    stairs.reset()
    assert stairs.caches.rows == 0
    for length in (1, 70, 129):
        stairs.prefill([5] * length)
        assert stairs.caches.rows >= length
        assert stairs.caches.rows % c.CACHE_BUCKET == 0
        stairs.reset()


@pytest.mark.parametrize("padded", [1, 2])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_sequence_leaves_nothing_behind(shelf: Any, padded: int, value: float) -> None:
    """After a reset the next sequence is computed as by a new staircase, even if the last one came to nothing."""
    opened = shelf.bundle(at=EXITS, minimum_rows=padded)
    used, fresh = staircase(opened), staircase(opened)
    used.prefill(list(range(100)))
    used.append([3])
    used.run_step(0)
    for rows in (*used.pool.boundary, used.pool._in, used.pool._out):
        rows += value
    used.reset()
    np.testing.assert_array_equal(used.prefill([5]), fresh.prefill([5]))
    for stairs in (used, fresh):
        stairs.append([8])
    np.testing.assert_array_equal(used.run_full(), fresh.run_full())
