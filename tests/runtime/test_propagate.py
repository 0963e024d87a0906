"""The rule `propagate`: skipped layers' keys and values are projections of the state that a token left with.

The oracle is transformers, token by token: a skipped layer is run on that state for its keys and values, and its output
thrown away. When the K/V-only passes run, and with whom, changes no bit.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.staircase import Pool, Staircase

EXITS = [1, 2, 3]
STEPS = len(EXITS) + 1
CAP = 8
RULES = {"kv": ("catch_up", "propagate")}
GAIN = 0.35
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.05}]
TOKENS = st.integers(0, tiny.VOCAB - 1)
WALK = st.lists(st.tuples(TOKENS, st.integers(1, STEPS), st.booleans()), min_size=1, max_size=40)
MODELS = {
    "llama": tiny.config(),
    "llama-biases": tiny.config(attention_bias=True, num_key_value_heads=4),
    "mistral-window": tiny.config("mistral", sliding_window=7, head_dim=16),
    "qwen3": tiny.config("qwen3", head_dim=16, num_key_value_heads=1),
    "llama3-rope": tiny.variants()["llama-llama3"],
}


def walk(one: Staircase, token: int, depth: int) -> Any:
    """Run a token through `depth` steps and leave it there; returns its row."""
    if one.pending >= CAP:
        fill([one])
    one.append([token])
    for k in range(depth):
        rows = one.run_step(k)
        assert len(rows) == 1
    if depth < STEPS:
        one.leave_at(depth)
    return rows[0].copy()


def fill(those: list[Staircase]) -> None:
    for k in range(STEPS):
        those[0].pool.fill(k, those)


@pytest.mark.torch
@pytest.mark.parametrize("model", MODELS)
def test_rows_are_those_of_transformers(shelf: Any, model: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import DynamicCache

    source = shelf.checkpoint(MODELS[model])
    opened = shelf.bundle(MODELS[model], EXITS, build=RULES)
    theirs = tiny.hugging_face(source).model
    cache, mine = DynamicCache(config=theirs.config), Staircase(opened.manifest, opened.graphs)
    rng = np.random.default_rng(5)
    window = MODELS[model].get("sliding_window")

    def step(token: int, position: int, depth: int) -> Any:
        at = torch.tensor([[position]])
        with torch.inference_mode():
            x = theirs.embed_tokens(torch.tensor([[token]]))
            rotary = theirs.rotary_emb(x, at)
            keys = (
                torch.arange(position + 1)
                if window is None
                else torch.arange(max(0, position + 1 - window), position + 1)
            )
            mask = torch.zeros(1, 1, 1, len(keys))
            for i, layer in enumerate(theirs.layers):
                y = layer(x, attention_mask=mask, position_ids=at, past_key_values=cache, position_embeddings=rotary)
                y = y[0] if isinstance(y, tuple) else y
                x = y if i < depth else x
            return (theirs.norm(x) if depth == len(theirs.layers) else x)[0, 0].numpy()

    early = 0
    for position in range(40):
        token, depth = int(rng.integers(tiny.VOCAB)), int(rng.integers(1, STEPS + 1)) if position else STEPS
        np.testing.assert_allclose(walk(mine, token, depth), step(token, position, depth), atol=2e-4, rtol=2e-4)
        early += depth < STEPS
    assert early > 20


@pytest.mark.parametrize(("precision", "padded"), [("fp32", 1), ("fp16", 1), ("int8", 1), ("int4", 1), ("fp32", 3)])
@given(model=st.sampled_from(["llama", "mistral-window", "qwen3"]), prompt=st.lists(TOKENS, min_size=1, max_size=30),
       moves=WALK)  # fmt: skip
@settings(max_examples=15)
def test_when_it_is_done_changes_nothing(
    shelf: Any, precision: str, padded: int, model: str, prompt: list[int], moves: list[tuple[int, int, bool]]
) -> None:
    """Left rows may wait for the next pass, or be done at once; in a pool the others' passes change nothing either."""
    opened = shelf.bundle(MODELS[model], EXITS, precision=precision, minimum_rows=padded, build=RULES)
    lazy, eager = (Staircase(opened.manifest, opened.graphs) for _ in range(2))
    pool = Pool(opened.manifest, opened.graphs, 3, 100.0)
    others = [Staircase(opened.manifest, opened.graphs, pool) for _ in range(2)]
    shared = Staircase(opened.manifest, opened.graphs, pool)
    for one in (lazy, eager, shared, *others):
        one.prefill(prompt)
    for token, depth, now in moves:
        rows = [walk(lazy, token, depth), walk(eager, token, depth)]
        fill([eager])
        if now:
            walk(others[0], token, 1)
            walk(others[1], token + 1 if token + 1 < tiny.VOCAB else 0, 2)
            fill([*others, shared])
        rows.append(walk(shared, token, depth))
        assert all(np.array_equal(row, rows[0]) for row in rows)
    fill([lazy])
    fill([shared])
    for one in (lazy, eager, shared):
        assert one.filled == [one.length] * STEPS
        assert sum(one.left) == sum(one.waiting) == 0
    whole = [tiny.caches(one, one.filled) for one in (lazy, eager, shared)]
    for mine in whole[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(mine, whole[0], strict=True))


def test_a_segment_is_not_run_for_what_was_left(shelf: Any) -> None:
    opened = shelf.bundle(at=EXITS, build=RULES)
    one = Staircase(opened.manifest, opened.graphs)
    one.prefill([1, 2, 3])
    before = one.layer_rows
    for token in range(5):
        walk(one, token, 1)
    walk(one, 9, STEPS)
    assert one.layer_rows - before == 5 * 1 + 4
    assert one.pool.passes == 4 + 5 + 3 + 4  # prompt; five first steps; a K/V-only pass each before three full ones


# -- decoding ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Calibrated for both rules, its policy's rule propagate."""
    path = tmp_path_factory.mktemp("propagate") / "bundle"
    tiny.bundle_at(path, shelf.checkpoint(gain=GAIN), EXITS, **RULES, slots=8)
    tiny.calibrate(path, ALLOWED)
    return tiny.calibrate(path, ALLOWED, kv="propagate")


def test_the_rule_matters(both: Bundle) -> None:
    """It is the policy's where none is asked for; the two give other tokens, after a common beginning."""
    prompts = [[i, 2 * i, 5] for i in range(12)]
    found = {
        kv: [tiny.tokens(both, prompt, 40, mode="confident", kv=kv) for prompt in prompts]
        for kv in (None, "propagate", "catch_up")
    }
    assert found[None] == found["propagate"] != found["catch_up"]
    assert [ids[0] for ids in found["propagate"]] == [ids[0] for ids in found["catch_up"]]


def test_a_batch_is_its_requests_alone(both: Bundle) -> None:
    depths: Counter[int] = Counter()

    @given(
        prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=7), slots=st.integers(1, 4),
        cap=st.integers(1, CAP), each_pass=st.sampled_from([0.5, 60.0]), count=st.integers(1, 30),
        rules=st.lists(st.sampled_from(["propagate", "propagate", "catch_up"]), min_size=7, max_size=7),
    )  # fmt: skip
    @settings(max_examples=25)
    def check(prompts: Any, slots: int, cap: int, each_pass: float, count: int, rules: list[str]) -> None:
        batch = both.batch(slots=slots, mode="confident", pending_cap=cap)
        batch.pool.each_pass = each_pass
        requests = []
        for prompt, kv in zip(prompts, rules, strict=False):
            batch._own = both.settings(mode="confident", pending_cap=cap, kv=kv)
            requests.append(batch.add(prompt, max_new_tokens=count))
        list(batch.run())
        for request, prompt, kv in zip(requests, prompts, rules, strict=False):
            assert request.ids == tiny.tokens(both, prompt, count, mode="confident", pending_cap=cap, kv=kv)
            depths.update(request.exit_layers)

    check()
    assert set(depths) == {1, 2, 3, 4}, depths


@pytest.mark.parametrize("cap", [1, 3, CAP])
def test_no_more_rows_wait_than_may(both: Bundle, cap: int) -> None:
    """Any number of tokens may leave in a row, and the cap only says when their rows are filled in."""
    found = []
    for limit in (cap, CAP):
        session = both.session(mode="confident", pending_cap=limit)
        ids = []
        for token in session.generate([3, 1, 4], max_new_tokens=60):
            ids.append(token.id)
            assert session._stairs.pending <= limit
        found.append(ids)
    assert found[0] == found[1]


def test_rules_are_refused_where_they_do_not_hold(both: Bundle, shelf: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"full model's keys and values(.|\n)*mode confident"):
        both.session(mode="exact", kv="propagate")
    with pytest.raises(UsageError, match="no K/V rule"):
        both.session(mode="confident", kv="copy")
    plain = shelf.bundle(at=EXITS)
    with pytest.raises(UsageError, match=r"no graphs for propagate(.|\n)*--kv catch_up,propagate"):
        plain.session(mode="confident", kv="propagate")
    path = tiny.bundle_at(tmp_path / "b", shelf.checkpoint(gain=GAIN), EXITS, **RULES)
    once = tiny.calibrate(path, ALLOWED)
    with pytest.raises(Uncalibrated, match=r"propagate(.|\n)*--kv propagate"):
        once.session(mode="confident", kv="propagate")
    assert once.session(mode="confident").mode == "confident"


def test_propagate_allows_the_tested_thresholds_only(both: Bundle) -> None:
    """With catch_up a stricter threshold or a closed exit keeps the promise; here it is another, untested policy."""
    stricter: Any = {1: {"max_prob": 0.5}}
    both.session(mode="confident", kv="catch_up", thresholds=stricter)
    both.session(mode="confident", kv="catch_up", minimum_depth=2)
    for changed in ({"thresholds": stricter}, {"thresholds": {1: None}}, {"minimum_depth": 2}):
        with pytest.raises(Uncalibrated, match="tested point"):
            both.session(mode="confident", kv="propagate", **changed)
    both.session(mode="confident", kv="propagate", thresholds={1: ALLOWED[0]}, minimum_depth=1)  # type: ignore[dict-item]
