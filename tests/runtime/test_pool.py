"""Sequences in one pool: whatever joins, leaves, exits, waits, rolls back or moves, each one's rows and caches are, to
the bit, those of a full pass over its own tokens; and passes are planned as cheaply as any partition would be."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.bundle.manifest import PassTime, Profile
from eecompile.runtime import Bundle
from eecompile.runtime.plan import PASS_ROWS, pass_rows, plan_passes, riders
from eecompile.runtime.staircase import Pool, Staircase

EXITS = [1, 2, 3]
STEPS = len(EXITS) + 1
SLOTS, CAP = 4, 8
SHAPES = {
    "groups-of-2": tiny.config(),
    "groups-of-1": tiny.config(num_key_value_heads=4),
    "window": tiny.config("mistral", sliding_window=20),
    "wide": tiny.config("qwen3", head_dim=64, num_attention_heads=3, num_key_value_heads=1),
}
BUILDS = [
    *((precision, 1, "fp32") for precision in tiny.PRECISIONS),
    ("fp32", 3, "fp32"),
    ("int8", 1, "fp16"),
    ("fp32", 1, "int8"),
]
TOKENS = st.integers(0, tiny.VOCAB - 1)


class Crowd:
    """Staircases in a pool, the tokens that each stands for, and the finished rows that each was given."""

    def __init__(self, opened: Bundle, each_pass: float) -> None:
        self.opened, self.pool = opened, Pool(opened.manifest, opened.graphs, SLOTS, each_pass)
        self.tokens: dict[Staircase, list[int]] = {}
        self.finished: dict[Staircase, dict[int, Any]] = {}

    def join(self, prompt: list[int]) -> None:
        if len(self.tokens) == SLOTS:
            return
        stairs = Staircase(self.opened.manifest, self.opened.graphs, self.pool)
        self.tokens[stairs], self.finished[stairs] = list(prompt), {}
        stairs.prefill(prompt)

    def step(self, tokens: list[int], depths: list[int]) -> None:
        """A token for each sequence, to leave after `depth` + 1 steps: all of them in the same passes."""
        those = list(self.tokens)
        if not those:
            return
        self.pool.embed(those, [[token] for token in tokens[: len(those)]])
        for one, token in zip(those, tokens, strict=False):
            self.tokens[one].append(token)
        depth = {one: STEPS if one.pending > CAP else depths[i] + 1 for i, one in enumerate(those)}
        for k in range(STEPS):
            going = [one for one in those if depth[one] > k]
            if going:
                self.note(k, going, self.pool.run_step(k, going))

    def flush(self, chosen: set[int]) -> None:
        """Some sequences catch up, in the same passes."""
        those = [one for i, one in enumerate(self.tokens) if i in chosen]
        for k in range(STEPS):
            going = [one for one in those if one.waiting[k]]
            if going:
                self.note(k, going, self.pool.run_step(k, going))

    def note(self, k: int, those: list[Staircase], rows: list[Any]) -> None:
        if k == STEPS - 1:
            for one, mine in zip(those, rows, strict=True):
                for i, row in enumerate(mine):
                    self.finished[one][one.filled[-1] - len(mine) + i] = row.copy()

    def rewind(self, which: int, count: int) -> None:
        one = list(self.tokens)[which % len(self.tokens)] if self.tokens else None
        if one is not None:
            length = max(1, min(one.length - count, one.filled[-1]))
            one.rewind(length)
            del self.tokens[one][length:]
            self.finished[one] = {i: row for i, row in self.finished[one].items() if i < length}

    def leave(self, which: int, spoil: bool) -> None:
        if not self.tokens:
            return
        one = list(self.tokens)[which % len(self.tokens)]
        if spoil:  # a sequence whose numbers were not finite
            for tensors in self.pool.caches.tensors:
                for tensor in (t for t in tensors.values() if t.dtype == np.float32):
                    tensor[one.slot, :, : one.filled[-1]] = np.nan
        one.leave()
        del self.tokens[one], self.finished[one]

    def close(self) -> None:
        while self.pool.close_gap():
            pass
        assert sorted(one.slot for one in self.tokens) == list(range(len(self.tokens)))

    def check(self) -> None:
        for one, tokens in self.tokens.items():
            whole = Staircase(self.opened.manifest, self.opened.graphs)
            rows = []
            for start in range(0, len(tokens), 128):
                whole.append(tokens[start : start + 128])
                rows.append(whole.run_full().copy())
            assert one.length == len(tokens) == one.filled[0]
            mine, theirs = (tiny.caches(s, one.filled) for s in (one, whole))
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
            stacked = np.concatenate(rows)
            assert all(np.array_equal(row, stacked[i]) for i, row in self.finished[one].items())


MOVES = st.one_of(
    st.tuples(
        st.just("step"), st.lists(TOKENS, min_size=SLOTS, max_size=SLOTS),
        st.lists(st.integers(0, STEPS - 1), min_size=SLOTS, max_size=SLOTS),
    ),
    st.tuples(st.just("join"), st.lists(TOKENS, min_size=1, max_size=40)),
    st.tuples(st.just("flush"), st.sets(st.integers(0, SLOTS - 1), min_size=1)),
    st.tuples(st.just("rewind"), st.integers(0, SLOTS - 1), st.integers(1, 6)),
    st.tuples(st.just("leave"), st.integers(0, SLOTS - 1), st.booleans()),
    st.tuples(st.just("close")),
)  # fmt: skip


@pytest.mark.parametrize(("precision", "padded", "cache"), BUILDS)
@given(
    shape=st.sampled_from(sorted(SHAPES)), each_pass=st.sampled_from([0.1, 3.0, 100.0]),
    prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=60), min_size=1, max_size=SLOTS),
    moves=st.lists(MOVES, min_size=4, max_size=30),
)  # fmt: skip
@settings(max_examples=20)
def test_any_crowd_is_its_sequences_alone(
    shelf: Any,
    precision: str,
    padded: int,
    cache: str,
    shape: str,
    each_pass: float,
    prompts: list[list[int]],
    moves: list[Any],
) -> None:
    crowd = Crowd(
        shelf.bundle(SHAPES[shape], EXITS, precision=precision, minimum_rows=padded, build={"cache": cache}), each_pass
    )
    for prompt in prompts:
        crowd.join(prompt)
    for name, *arguments in moves:
        getattr(crowd, name)(*arguments)
    crowd.check()
    crowd.flush(set(range(SLOTS)))
    crowd.check()


def test_padding_near_the_end_of_the_context_is_harmless(shelf: Any) -> None:
    """A prompt is run over a slot that waits at the context's end: its padding has no positions left there."""
    opened = shelf.bundle(at=EXITS, context=48)
    crowd = Crowd(opened, 1e9)
    for prompt in ([1] * 5, [2] * 47, [3] * 2):
        crowd.join(prompt)
    crowd.step([7, 8, 9, 0], [0, 3, 0, 0])
    ends = list(crowd.tokens)
    crowd.pool.embed([ends[0], ends[2]], [[4] * 40, [5] * 40])
    for one, token in ((ends[0], 4), (ends[2], 5)):
        crowd.tokens[one] += [token] * 40
    for k in range(STEPS):
        crowd.pool.run_step(k, [ends[0], ends[2]])
    assert crowd.pool.rows > 3 * 40  # the one between was in the passes
    crowd.check()


def test_a_pool_is_as_long_as_its_longest_sequence(shelf: Any) -> None:
    crowd = Crowd(shelf.bundle(at=EXITS), 3.0)
    crowd.join([1] * 200)
    crowd.join([2] * 3)
    assert crowd.pool.caches.rows >= 200
    crowd.leave(0, False)
    assert crowd.pool.caches.rows <= 48
    crowd.step([5, 6, 7, 8], [3, 3, 3, 3])
    crowd.check()
    crowd.leave(0, False)
    assert crowd.pool.caches.rows == 0
    for number in range(SLOTS):
        crowd.join([number])
    with pytest.raises(ValueError, match="None"):
        Staircase(crowd.opened.manifest, crowd.opened.graphs, crowd.pool)


# -- plans ------------------------------------------------------------------------------------------------------

WAITING = st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1, max_size=6).map(
    lambda found: tuple(sorted(found.items()))
)


def cost(group: Any, each_pass: float) -> float:
    return float(each_pass + (group[-1][0] + 1 - group[0][0]) * max(rows for _, rows in group))


@given(waiting=WAITING, each_pass=st.floats(0.0, 50.0))
def test_a_plan_is_the_cheapest_partition(waiting: Any, each_pass: float) -> None:
    plan, price = plan_passes(waiting, each_pass, 1000)
    inner = range(1, len(waiting))
    costs = []
    for cuts in (cut for n in range(len(waiting)) for cut in combinations(inner, n)):
        edges = [0, *cuts, len(waiting)]
        costs.append(sum(cost(waiting[a:b], each_pass) for a, b in pairwise(edges)))
    assert price == pytest.approx(min(costs))
    assert sum(each_pass + (last - first) * rows for first, last, rows in plan) == pytest.approx(price)
    for slot, rows in waiting:
        assert sum(first <= slot < last and rows <= most for first, last, most in plan) == 1


@given(waiting=WAITING, most=st.integers(9, 40))
def test_no_pass_is_larger_than_allowed(waiting: Any, most: int) -> None:
    plan, _ = plan_passes(waiting, 1e6, most)
    assert all((last - first) * rows <= most for first, last, rows in plan)


def test_riding_along_pays_where_padding_is_less_than_a_pass() -> None:
    assert riders(((0, 1),), ((1, 1),), 10.0, 1000)
    assert riders(((0, 1),), ((1, 8), (2, 8)), 10.0, 1000)
    assert not riders(((0, 1), (1, 1), (2, 1), (3, 1)), ((4, 9), (9, 1)), 2.0, 1000)
    assert not riders((), ((4, 9),), 10.0, 1000)
    assert not riders(((4, 9),), (), 10.0, 1000)


def test_what_a_pass_costs_comes_from_the_profile() -> None:
    def profile(seconds: dict[int, float]) -> Profile:
        passes = [PassTime(graph="segment_0", rows=rows, length=64, seconds=s) for rows, s in seconds.items()]
        passes.append(PassTime(graph="head", rows=1, length=0, seconds=9.0))
        return Profile(core="0" * 64, device="x", threads=1, passes=passes, digest="0" * 64)

    assert pass_rows([]) == pass_rows([profile({1: 1.0})]) == PASS_ROWS
    assert pass_rows([profile({1: 1.0, 9: 1.8, 128: 100.0})]) == pytest.approx(9.0)
    assert pass_rows([profile({1: 1.0, 9: 0.9, 128: 100.0})]) == 64.0
    assert pass_rows([profile({1: 1.0, 9: 9.0, 128: 100.0})]) == 1.0
