"""A batch equals its rows: each request gives what a session of its own gives, whatever joins, leaves, exits, rolls
back or fails beside it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.errors import ContextFull, NumericError, Uncalibrated, UsageError
from eecompile.runtime import Bundle, Request, Sampling, decode
from eecompile.runtime.decode import Decoder
from eecompile.runtime.gates import ExitGates
from eecompile.runtime.rules import ExitRule

GAIN = 0.35  # layers that add little: exits agree with the last layer about half of the time
TOKENS = st.integers(0, tiny.VOCAB - 1)
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.0}]
MODELS = {"groups": tiny.config(), "window": tiny.config("mistral", sliding_window=16, num_key_value_heads=4)}
SAMPLINGS = st.one_of(
    st.just(Sampling()), st.builds(Sampling, temperature=st.floats(0.05, 2.0), seed=st.integers(0, 1 << 40))
)
ASKED = st.fixed_dictionaries({
    "prompt": st.one_of(st.lists(TOKENS, min_size=1, max_size=9), st.lists(TOKENS, min_size=100, max_size=140)),
    "count": st.integers(1, 30), "how": SAMPLINGS, "mode": st.sampled_from(c.MODES), "wait": st.integers(0, 6),
    "stop": st.sets(TOKENS, max_size=6), "depth": st.sampled_from([0, 0, 0, 2, 4]),
})  # fmt: skip
BUILDS = [(model, precision) for model in MODELS for precision in ("fp32", "int8")] + [("groups", "int4")]


@pytest.fixture(scope="module")
def calibrated(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bundles by model and precision whose three exits fire, in both modes."""
    made: dict[tuple[str, str], Bundle] = {}

    def bundle(model: str, precision: str) -> Bundle:
        if (model, precision) not in made:
            path = tmp_path_factory.mktemp("batch") / "bundle"
            tiny.bundle_at(path, shelf.checkpoint(MODELS[model], gain=GAIN), [1, 2, 3], precision=precision, slots=8)
            made[model, precision] = tiny.calibrate(path, ALLOWED)
        return made[model, precision]

    return bundle


def drafting(mode: str) -> dict[str, Any]:
    """Thresholds that let exact mode draft."""
    return {"thresholds": dict(zip((1, 2, 3), ALLOWED, strict=True))} if mode == "exact" else {}


def alone(opened: Bundle, asked: dict[str, Any], cap: int) -> tuple[list[int], list[int], str]:
    """(ids, depths, why it ended) of a session of its own."""
    session = opened.session(
        mode=asked["mode"], pending_cap=cap, minimum_depth=asked["depth"], **drafting(asked["mode"])
    )
    generation = session.generate(
        asked["prompt"], max_new_tokens=asked["count"], sampling=asked["how"], stop=asked["stop"]
    )
    depths = [token.exit_layer for token in generation]
    return generation.ids, depths, generation.stats.stop_reason


def check_caches(batch: Any, opened: Bundle) -> None:
    """What each live sequence's caches hold is what a full pass over its own tokens writes."""
    for live in batch._live:
        stairs = live.one.stairs
        tokens = [*live.request.prompt_ids, *live.request.ids, *(d.id for d in live.one.drafts)][: stairs.length]
        whole = tiny.Staircase(opened.manifest, opened.graphs)
        whole.prefill(tokens)
        mine, theirs = (tiny.caches(s, stairs.filled) for s in (stairs, whole))
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("model", "precision"), BUILDS)
def test_a_batch_is_its_requests_alone(calibrated: Any, model: str, precision: str) -> None:
    opened, seen = calibrated(model, precision), Counter[str]()

    @given(
        asked=st.lists(ASKED, min_size=1, max_size=9), slots=st.integers(1, 5), cap=st.integers(1, 8),
        each_pass=st.sampled_from([0.5, 6.0, 60.0]),
    )  # fmt: skip
    @settings(max_examples=20)
    def check(asked: list[dict[str, Any]], slots: int, cap: int, each_pass: float) -> None:
        batch = opened.batch(slots=slots, pending_cap=cap, **drafting("exact"))
        batch.pool.each_pass = each_pass
        requests: list[Request] = []
        told: dict[int, list[int]] = {}
        todo = sorted(asked, key=lambda one: one["wait"])
        for number in range(10_000):
            while todo and todo[0]["wait"] <= number:
                one = todo.pop(0)
                thresholds = {} if one["mode"] == "exact" else {"thresholds": {}}
                batch._settings.keywords["thresholds"] = thresholds.get("thresholds", drafting("exact")["thresholds"])
                requests.append(batch.add(
                    one["prompt"], max_new_tokens=one["count"], sampling=one["how"], stop=one["stop"],
                    mode=one["mode"], minimum_depth=one["depth"],
                ))  # fmt: skip
            if not batch.busy and not todo:
                break
            for request, token in batch.step():
                told.setdefault(request.number, []).append(token.id)
            if number in (3, 11):
                check_caches(batch, opened)
        for request, one in zip(requests, sorted(asked, key=lambda one: one["wait"]), strict=True):
            ids, depths, reason = alone(opened, one, cap)
            assert request.ids == told[request.number] == ids
            assert request.stats.stop_reason == reason
            if one["mode"] != "exact":  # what rides along is verified sooner: other drafts, the same tokens
                assert request.exit_layers == depths
            seen.update(early=sum(n < 4 for n in depths), rejected=request.stats.rejected, full=depths.count(4))
        seen.update(shared=batch.pool.rows - batch.pool.passes)

    check()
    assert min(seen[key] for key in ("early", "rejected", "full", "shared")) > 50, seen


@given(
    depths=st.lists(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=25, max_size=25), min_size=2, max_size=6),
    cap=st.integers(1, 8), exact=st.booleans(), each_pass=st.sampled_from([0.5, 6.0, 60.0]),
)  # fmt: skip
@settings(max_examples=40)
def test_any_pattern_of_exits(
    calibrated: Any, depths: list[list[int]], cap: int, exact: bool, each_pass: float
) -> None:
    """Exits fire where a script says, not where a gate does: token t of request i leaves after depths[i][t] layers."""
    opened = calibrated("groups", "fp32")
    mode = "exact" if exact else "confident"
    count = 25

    def scripted(runner: Any, scripts: dict[int, list[int]], slots: int) -> None:
        """Make the exits answer by script; the token is the exit's own."""
        gates, ask = runner._decoder._gates, runner._decoder._gates.ask

        def answer(exit_: int, rows: Any, states: list[Any], places: list[int]) -> list[int | None]:
            bold = [state.rules for state in states]
            for state in states:
                state.rules = [r and ExitRule(r.exit, r.layer, np.array(c.NO_BOUND, np.float32)) for r in state.rules]
            tokens = ask(exit_, rows, states, places)
            for state, rules in zip(states, bold, strict=True):
                state.rules = rules
            layer = opened.manifest.exits[exit_].layer
            return [
                token if scripts[id(state.sampling)][state.position % 25] == layer else None
                for state, token in zip(states, tokens, strict=True)
            ]

        gates.ask = answer

    prompts = [[3 * i + j for j in range(2 + i)] for i in range(len(depths))]
    hows = [Sampling(seed=i) for i in range(len(depths))]
    scripts = {id(how): script for how, script in zip(hows, depths, strict=True)}
    expected = []
    for prompt, how in zip(prompts, hows, strict=True):
        session = opened.session(mode=mode, pending_cap=cap, **drafting(mode))
        scripted(session, scripts, 1)
        expected.append([t.id for t in session.generate(prompt, max_new_tokens=count, sampling=how)])
    batch = opened.batch(slots=max(1, len(depths) - 1), mode=mode, pending_cap=cap, **drafting(mode))
    batch.pool.each_pass = each_pass
    scripted(batch, scripts, len(depths))
    requests = [batch.add(p, max_new_tokens=count, sampling=how) for p, how in zip(prompts, hows, strict=True)]
    steps = 0
    while batch.busy:
        batch.step()
        if (steps := steps + 1) % 7 == 0:
            check_caches(batch, opened)
    assert [request.ids for request in requests] == expected
    if exact:
        full = [tiny.tokens(opened, prompt, count) for prompt in prompts]
        assert expected == full


# -- joining, leaving, limits, faults ---------------------------------------------------------------------------


def test_passes_are_shared(calibrated: Any) -> None:
    """A loop over rows is not a batch: eight sequences take hardly more passes than one."""
    opened = calibrated("groups", "fp32")
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    batch = opened.batch(slots=8)
    requests = [batch.add(prompt, max_new_tokens=20) for prompt in prompts]
    emitted = list(batch.run())
    assert batch.pool.passes == 20 * 4
    assert len(emitted) == 8 * 20
    assert all(request.stats.segment_passes == 20 * 4 for request in requests)
    assert all(request.stats.layer_rows == (3 + 19) * 4 for request in requests)


def test_requests_wait_for_a_slot_in_order(calibrated: Any) -> None:
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=2)
    requests = [batch.add([i], max_new_tokens=3 + i) for i in range(5)]
    assert (batch.busy, batch.free) == (True, 0)
    first: list[int] = []
    for request, _ in batch.run():
        if request.number not in first:
            first.append(request.number)
    assert first == [0, 1, 2, 3, 4]
    assert (batch.busy, batch.free) == (False, 2)
    assert [request.ids for request in requests] == [tiny.tokens(opened, [i], 3 + i) for i in range(5)]
    assert batch.pool.caches.rows == 0
    assert batch.step() == []


def test_sequences_close_up_when_one_leaves(calibrated: Any) -> None:
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=4)
    requests = [batch.add([i], max_new_tokens=count) for i, count in enumerate((2, 30, 2, 30))]
    for _ in range(5):
        batch.step()
    assert sorted(live.one.stairs.slot for live in batch._live) == [0, 1]
    before = batch.pool.rows
    batch.step()
    assert batch.pool.rows - before == 2 * 4
    list(batch.run())
    assert requests[3].ids == tiny.tokens(opened, [3], 30)


def test_a_long_prompt_does_not_hold_up_the_others(calibrated: Any) -> None:
    """A prompt of 200 takes two steps of a chunk each; the others get their token in every one of them."""
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=2)
    short, long = batch.add([1], max_new_tokens=9), batch.add([2] * 200, max_new_tokens=2)
    counts = []
    while not long.ids:
        batch.step()
        counts.append(len(short.ids))
    assert counts == [1, 2, 3]
    list(batch.run())
    assert long.ids == tiny.tokens(opened, [2] * 200, 2)
    assert short.ids == tiny.tokens(opened, [1], 9)


def test_a_request_can_be_cancelled(calibrated: Any) -> None:
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=1)
    running, queued, last = (batch.add([i], max_new_tokens=8) for i in range(3))
    batch.step()
    batch.step()
    for request in (running, queued, queued):
        batch.cancel(request)
    list(batch.run())
    assert running.ids == tiny.tokens(opened, [0], 2)
    assert (queued.ids, queued.stats.stop_reason, running.stats.stop_reason) == ([], "cancelled", "cancelled")
    assert last.ids == tiny.tokens(opened, [2], 8)


@pytest.mark.parametrize("mode", c.MODES)
def test_a_budget_ends_one_request_only(calibrated: Any, mode: str) -> None:
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=2, mode=mode, **drafting(mode))
    limited, free = batch.add([1, 2], max_new_tokens=40, budget=80), batch.add([3, 4], max_new_tokens=40)
    list(batch.run())
    assert limited.stats.stop_reason == "budget"
    assert limited.stats.layer_rows <= 80
    assert 0 < len(limited.ids) < 40
    assert (free.stats.stop_reason, len(free.ids)) == ("length", 40)


def test_a_sequence_that_fails_takes_no_other_along(shelf: Any, tmp_path: Path) -> None:
    """One token's embedding is not a number: who meets it fails, before and after it others run in the same slots."""
    settings = tiny.config()
    tensors = tiny.weights(settings, gain=GAIN)
    tensors["model.embed_tokens.weight"][77] = np.nan
    source = tiny.checkpoint(tmp_path / "checkpoint", settings, tensors)
    opened = tiny.open_bundle(tmp_path / "bundle", source, [1, 2, 3], slots=8)
    clean = shelf.bundle(at=[1, 2, 3], gain=GAIN, slots=8)
    batch = opened.batch(slots=3)
    prompts = [[5, 6], [9, 77, 8], [7] * 20, [1], [77], [4], [3, 3]]
    requests = [batch.add(prompt, max_new_tokens=12) for prompt in prompts]
    list(batch.run())
    for prompt, request in zip(prompts, requests, strict=True):
        if 77 in prompt:
            assert isinstance(request.error, NumericError)
            assert (request.stats.stop_reason, request.ids) == ("error", [])
        else:
            expected = tiny.tokens(clean, prompt, 12)
            assert 77 not in expected[:-1]
            assert (request.error, request.ids) == (None, expected)


def test_a_context_that_is_full_ends_where_it_should(shelf: Any) -> None:
    opened = shelf.bundle(at=[1, 2, 3], gain=GAIN, context=40, slots=8)
    thresholds: Any = drafting("exact")["thresholds"]
    batch = opened.batch(slots=3, mode="exact", thresholds=thresholds)
    requests = [batch.add([i] * n) for i, n in enumerate((5, 38, 40, 20))]
    list(batch.run())
    for i, n in enumerate((5, 38, 40, 20)):
        assert requests[i].ids == tiny.tokens(opened, [i] * n, 41 - n)
        assert requests[i].stats.stop_reason == "length"


def test_what_cannot_be_served_is_refused_at_once(calibrated: Any, shelf: Any) -> None:
    opened = calibrated("groups", "fp32")
    batch = opened.batch(slots=2)
    with pytest.raises(UsageError, match="empty"):
        batch.add([])
    with pytest.raises(UsageError, match="outside"):
        batch.add([tiny.VOCAB])
    with pytest.raises(ContextFull):
        batch.add([1] * 257)
    with pytest.raises(UsageError, match="tokenizer"):
        batch.add("words")
    with pytest.raises(UsageError, match="no mode"):
        batch.add([1], mode="fast")
    assert not batch.busy
    with pytest.raises(Uncalibrated):
        shelf.bundle(at=[1], slots=8).batch(slots=2, mode="confident")
    for slots in (0, opened.manifest.slots + 1):
        with pytest.raises(UsageError, match="is not from 1 to the bundle's"):
            opened.batch(slots=slots)


def test_generate_many_keeps_slots_full_and_draws_prompts_as_it_goes(calibrated: Any) -> None:
    opened = calibrated("groups", "fp32")
    drawn: list[int] = []

    def prompts() -> Any:
        for i in range(7):
            drawn.append(i)
            yield [i, i]

    done = opened.generate_many(prompts(), slots=3, mode="confident", max_new_tokens=6)
    assert drawn == []
    first = next(done)
    assert len(drawn) == 3
    results = {first.number: first.ids} | {request.number: request.ids for request in done}
    assert results == {i: tiny.tokens(opened, [i, i], 6, mode="confident") for i in range(7)}


def test_drafts_are_verified_in_parts_whatever_rides_along(
    shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence may ride along in a deep step and not in one before it: then older drafts are verified while its
    newest, which may end the text, still waits and is flushed. Nothing is lost."""
    rng, seen = np.random.default_rng(5), Counter[str]()
    ask, flush, riding = ExitGates.ask, Decoder.flush, Decoder._riding

    def irregular(self: Any, exit_: int, *asked: Any) -> Any:
        fires = 0.5 if exit_ == 0 else 0.35
        return [token if rng.random() < fires else None for token in ask(self, exit_, *asked)]

    def counted(self: Any, those: Any) -> None:
        seen["in parts"] += sum(bool(one.certain and one.drafts) for one in those)
        flush(self, those)

    monkeypatch.setattr(ExitGates, "ask", irregular)
    monkeypatch.setattr(Decoder, "flush", counted)
    monkeypatch.setattr(Decoder, "_riding", lambda self, k, *groups: riding(self, k, *groups) if k > 1 else [])
    monkeypatch.setattr(decode, "riders", lambda walking, others, *_: bool(walking and others))
    source = shelf.checkpoint(MODELS["groups"], gain=0.12)
    opened = Bundle.open(tiny.bundle_at(tmp_path / "bundle", source, [1, 2, 3], slots=8))
    batch = opened.batch(mode="exact", pending_cap=8, thresholds={n: {"max_prob": 0.0} for n in (1, 2, 3)})
    asked = [
        {"prompt": rng.integers(0, tiny.VOCAB, 4), "max_new_tokens": 12, "stop": set(range(i % 4, tiny.VOCAB, 4))}
        for i in range(500)
    ]
    requests = [batch.add(**one) for one in asked]
    for _ in batch.run():
        pass
    monkeypatch.undo()
    session = opened.session(mode="full")
    assert all([t.id for t in session.generate(**one)] == r.ids for one, r in zip(asked, requests, strict=True))
    assert seen["in parts"] > 2
