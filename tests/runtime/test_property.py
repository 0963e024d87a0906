"""Exact mode is full mode, token for token, whatever the exits, thresholds, caps, prompts and sampling; the caches of
confident mode are the full model's on the tokens that it emitted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.staircase import Staircase
from eecompile.student.exits import ExitSpec

GAIN = 0.35  # layers that add little: exits agree with the last layer about half of the time
PROMPTS = st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=80)
EXITS = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3, unique=True).map(sorted)
SAMPLINGS = st.one_of(
    st.just(Sampling()),
    st.builds(
        Sampling, temperature=st.floats(0.05, 2.0), top_k=st.sampled_from([0, 0, 1, 5, 40]),
        top_p=st.sampled_from([1.0, 1.0, 0.9, 0.4]), seed=st.integers(0, 1 << 40),
    ),
)  # fmt: skip
MODELS = {
    "groups": tiny.config(),
    "window": tiny.config("mistral", sliding_window=16, num_key_value_heads=4),
    "fused": tiny.config("mistral", sliding_window=16, head_dim=16),
    "qwen3": tiny.config("qwen3", head_dim=16, tie_word_embeddings=True),
}


def run(opened: Bundle, prompt: Sequence[int], count: int, how: Sampling, **options: Any) -> tuple[list[int], Any]:
    """Token ids and stats of a request in a new session."""
    generation = opened.session(**options).generate(prompt, max_new_tokens=count, sampling=how)
    return [token.id for token in generation], generation.stats


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_exact_is_full(shelf: Any, precision: str) -> None:
    """Drafts were made, confirmed and refused on the way: the equality is not an empty one."""
    seen: Counter[str] = Counter()

    @given(
        model=st.sampled_from(sorted(MODELS)), exits=EXITS, prompt=PROMPTS, count=st.integers(1, 40),
        bounds=st.lists(st.none() | st.sampled_from([0.0, 0.02, 0.1]) | st.floats(0, 1), min_size=3, max_size=3),
        cap=st.integers(1, 8), how=SAMPLINGS, minimum=st.sampled_from([0, 0, 2]),
    )  # fmt: skip
    @settings(max_examples=150)
    def check(
        model: str, exits: list[int], prompt: list[int], count: int, bounds: list[float | None], cap: int,
        how: Sampling, minimum: int,
    ) -> None:  # fmt: skip
        opened = shelf.bundle(MODELS[model], exits, precision=precision, gain=GAIN)
        thresholds = {n: None if b is None else {"max_prob": b} for n, b in zip(exits, bounds, strict=False)}
        full, _ = run(opened, prompt, count, how)
        options = {"thresholds": thresholds, "pending_cap": cap, "minimum_depth": minimum}
        exact, stats = run(opened, prompt, count, how, mode="exact", **options)
        assert exact == full
        assert len(full) == count
        seen.update(drafted=stats.drafted, rejected=stats.rejected, kept=stats.drafted - stats.rejected)
        seen.update(sampled=stats.drafted * (not how.greedy), greedy=stats.drafted * how.greedy)

    check()
    assert min(seen[key] for key in ("drafted", "rejected", "kept", "sampled", "greedy")) > 100, seen


GATES = st.sampled_from(
    [["learned"], ["learned", "max_prob"], ["margin"], ["entropy"], ["entropy", "margin"], ["fixed"], ["never"],
     ["learned", "entropy", "max_prob", "margin"]]
)  # fmt: skip


def test_exact_is_full_with_every_gate_and_adapter(shelf: Any) -> None:
    """Exits as training makes them: affine adapters, learned gates, several criteria at once."""
    drafted: Counter[str] = Counter()

    @given(
        gates=st.tuples(GATES, GATES), adapter=st.sampled_from(["norm", "affine"]), prompt=PROMPTS, how=SAMPLINGS,
        bounds=st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.9, 1.0]), min_size=4, max_size=4), cap=st.integers(1, 8),
    )  # fmt: skip
    @settings(max_examples=80)
    def check(
        gates: tuple[list[Any], list[Any]],
        adapter: Any,
        prompt: list[int],
        how: Sampling,
        bounds: list[float],
        cap: int,
    ) -> None:
        exits = [
            ExitSpec(layer=layer, adapter=adapter, gates=names, gate_units=3 * ("learned" in names))
            for layer, names in zip((1, 3), gates, strict=True)
        ]
        opened = shelf.bundle(exits=exits, gain=GAIN)
        scale = {"entropy": 4.8, "fixed": 0.0, "never": 0.0}
        thresholds = {
            e.layer: {name: bounds[i] * scale.get(name, 1.0) for i, name in enumerate(e.gates)} for e in exits
        }
        full, _ = run(opened, prompt, 24, how)
        exact, stats = run(opened, prompt, 24, how, mode="exact", thresholds=thresholds, pending_cap=cap)
        assert exact == full
        for e in exits:
            drafted.update(dict.fromkeys(e.gates, stats.drafted))
        if all("never" in names for names in gates):
            assert stats.drafted == 0

    check()
    assert {name for name, count in drafted.items() if count} >= {"learned", "max_prob", "margin", "entropy", "fixed"}


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_confident_caches_are_the_full_models(shelf: Any, tmp_path: Any, precision: str) -> None:
    """Given its own tokens, all that deeper layers know is what the full model would know."""
    source = shelf.checkpoint(gain=GAIN)
    path = tiny.bundle_at(tmp_path / "bundle", source, [1, 2, 3], precision=precision)
    opened = tiny.calibrate(path, [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.0}])
    depths: Counter[int] = Counter()

    @given(prompt=PROMPTS, count=st.integers(2, 60), cap=st.integers(1, 8), how=SAMPLINGS)
    @settings(max_examples=40)
    def check(prompt: list[int], count: int, cap: int, how: Sampling) -> None:
        session = opened.session(mode="confident", pending_cap=cap)
        generated = list(session.generate(prompt, max_new_tokens=count, sampling=how))
        depths.update(token.exit_layer for token in generated)
        ids = [*prompt, *(token.id for token in generated)][:-1]  # the last token was not embedded
        mine, whole = session._stairs, Staircase(opened.manifest, opened.graphs)
        assert mine.length == len(ids)
        assert mine.pending <= cap + 1
        whole.append(ids[:128])
        whole.run_full()
        if len(ids) > 128:
            whole.append(ids[128:])
            whole.run_full()
        pairs = zip(tiny.caches(mine, mine.filled), tiny.caches(whole, mine.filled), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)

    check()
    assert set(depths) == {1, 2, 3, 4}, depths


def test_confident_emits_what_its_exits_say(shelf: Any, tmp_path: Any) -> None:
    """Each token is the arg-max of the exit (or of the full model) at its own depth, teacher-forced on the output."""
    from eecompile.runtime.trace import Tracer

    path = tiny.bundle_at(tmp_path / "bundle", shelf.checkpoint(gain=GAIN), [1, 2, 3])
    opened = tiny.calibrate(path, [{"max_prob": 0.12}, None, {"max_prob": 0.05}])
    prompt = [3, 1, 4, 1, 5]
    generated = list(opened.session(mode="confident").generate(prompt, max_new_tokens=80))
    trace = Tracer(opened).trace([*prompt, *(t.id for t in generated)][:-1])
    said = {1: trace.exits[0], 3: trace.exits[2], 4: trace.final}
    for position, token in enumerate(generated, len(prompt) - 1):
        assert said[token.exit_layer].token[position] == token.id
    assert set(said) == {t.exit_layer for t in generated}
    waited = 0
    for position, token in enumerate(generated[1:], len(prompt)):
        if waited < 8:  # at the cap a token runs to full depth whatever its exits say
            fires = [n for n, bound in ((1, 0.12), (3, 0.05)) if said[n].max_prob[position] > np.float32(bound)]
            assert token.exit_layer == min([*fires, 4])
        waited = 0 if token.exit_layer == 4 else waited + 1
