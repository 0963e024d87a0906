"""Sessions: requests from start to stop in every mode, limits, and refusals that say how to mend them."""

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile.bundle.write import write_overlay
from eecompile.errors import ContextFull, EECompileError, IntegrityError, NumericError, Uncalibrated, UsageError
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.rules import ExitRule

GAIN = 0.35
LAYERS, CONTEXT = 4, 96
PROMPT = [3, 1, 4, 1, 5]
BOLD = {1: {"max_prob": 0.25}, 3: {"max_prob": 0.0}}
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.05}]
MODES = ["full", "exact", "confident"]


@pytest.fixture(scope="module")
def opened(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exits 1 and 3, calibrated to ALLOWED, drafting at p > 0.9; no tokenizer."""
    path = tmp_path_factory.mktemp("session") / "bundle"
    return tiny.calibrate(tiny.bundle_at(path, shelf.checkpoint(gain=GAIN), [1, 3], context=CONTEXT), ALLOWED)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a tokenizer and a chat template, exit 2, and the end token as its stop token."""
    folder = tmp_path_factory.mktemp("speaking")
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS + 3, eos_token_id=tiny.TOKENIZER_IDS - 1)
    source = tiny.add_tokenizer(tiny.checkpoint(folder / "checkpoint", settings, gain=GAIN))
    return tiny.open_bundle(folder / "bundle", source, [2])


def options(mode: str) -> dict[str, Any]:
    """A session in this mode that exits often."""
    return {"mode": mode, "thresholds": BOLD} if mode == "exact" else {"mode": mode}


# -- what a request gives ---------------------------------------------------------------------------------------


def test_a_generation_knows_its_ids_as_it_goes(opened: Bundle) -> None:
    generation = opened.session().generate(np.array(PROMPT), max_new_tokens=9)
    first = next(generation)
    assert generation.ids == [first.id]
    rest = [token.id for token in generation]
    assert generation.ids == [first.id, *rest]
    assert generation.prompt_ids == PROMPT
    assert len(rest) == 8
    assert next(generation, None) is None


@pytest.mark.parametrize("mode", MODES)
def test_stats_add_up(opened: Bundle, mode: str) -> None:
    generation = opened.session(**options(mode)).generate(PROMPT, max_new_tokens=40)
    depths = [token.exit_layer for token in generation]
    stats = generation.stats
    assert (stats.prompt_tokens, stats.tokens, stats.stop_reason) == (5, 40, "length")
    assert stats.exit_layers == {n: depths.count(n) for n in set(depths)}
    assert stats.mean_depth == pytest.approx(np.mean(depths))
    assert stats.prefill_seconds > 0
    assert stats.tokens_per_second == pytest.approx(39 / stats.decode_seconds)
    assert set(depths) <= {1, 3, 4}
    assert depths[0] == 4
    if mode == "full":
        assert set(depths) == {4}
        assert stats.layer_rows == (5 + 39) * LAYERS
        assert stats.segment_passes == 40 * 3
        assert (stats.drafted, stats.rejected) == (0, 0)
    else:
        assert set(depths) == {1, 3, 4}
        assert (stats.drafted > 0) == (mode == "exact")
        assert 0 <= stats.rejected <= stats.drafted
        assert stats.layer_rows >= sum(depths)


def test_exits_that_ask_the_head_and_go_on_are_counted(opened: Bundle) -> None:
    generation = opened.session(mode="exact", thresholds={1: {"max_prob": 1.0}, 3: None}).generate(
        PROMPT, max_new_tokens=10
    )
    assert all(token.exit_layer == 4 for token in generation)
    assert (generation.stats.heads_declined, generation.stats.drafted) == (9, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_session_serves_one_request_after_another(opened: Bundle, mode: str) -> None:
    """Nothing of a request, finished or given up, shows in the next."""
    session = opened.session(**options(mode))
    prompts = [PROMPT, [9] * 70, [1], PROMPT]
    for prompt in prompts:
        abandoned = session.generate([7, 7], max_new_tokens=20)
        next(abandoned)
        expected = tiny.tokens(opened, prompt, 20, **options(mode))
        assert [t.id for t in session.generate(prompt, max_new_tokens=20)] == expected


def test_a_request_that_another_has_replaced_is_refused(opened: Bundle) -> None:
    session = opened.session()
    first, second = (session.generate(prompt, max_new_tokens=8) for prompt in (PROMPT, [2, 2]))
    head = [next(first).id, next(first).id]
    assert head == tiny.tokens(opened, PROMPT, 2)
    start = next(second).id
    with pytest.raises(UsageError, match=r"another request(.|\n)*a session for each"):
        next(first)
    assert [start, *(t.id for t in second)] == tiny.tokens(opened, [2, 2], 8)


# -- stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(prompt=st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=9), at=st.integers(0, 29))
@hypothesis.settings(max_examples=30)
def test_the_first_stop_token_is_the_last_token(opened: Bundle, mode: str, prompt: list[int], at: int) -> None:
    whole = tiny.tokens(opened, prompt, 30, **options(mode))
    stop = whole[at]
    generation = opened.session(**options(mode)).generate(prompt, max_new_tokens=30, stop=[stop, tiny.VOCAB + 5])
    found = [token.id for token in generation]
    assert found == whole[: whole.index(stop) + 1]
    assert generation.stats.stop_reason == "stop"


def test_the_models_own_stop_tokens(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "plain", gain=GAIN)
    whole = tiny.tokens(tiny.open_bundle(tmp_path / "plain-bundle", source), PROMPT, 30)
    end = whole[7]
    source = tiny.checkpoint(tmp_path / "ends", tiny.config(eos_token_id=[end, 0]), gain=GAIN)
    ends = tiny.open_bundle(tmp_path / "ends-bundle", source)
    first = min(whole.index(token) for token in (end, 0) if token in whole)
    assert tiny.tokens(ends, PROMPT, 30) == whole[: first + 1]
    assert [t.id for t in ends.session().generate(PROMPT, max_new_tokens=30, stop=())] == whole


# -- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "exact"])
def test_text_streams(speaking: Bundle, mode: str) -> None:
    assert speaking.text is not None
    session = speaking.session(mode=mode, thresholds={2: {"max_prob": 0.0}} if mode == "exact" else None)
    generation = session.generate("Hi the 🙂", max_new_tokens=60, stop=())
    assert generation.prompt_ids == speaking.text.encode("Hi the 🙂")
    pieces = [token.text for token in generation]
    assert len(generation.ids) == 60
    whole = speaking.text.decode(generation.ids)
    assert whole.startswith("".join(pieces).rstrip("\ufffd")) or "\ufffd" in whole
    assert any(pieces)


def test_chat(speaking: Bundle) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    generation = speaking.session().chat(messages, max_new_tokens=5, sampling=Sampling(temperature=1.0, seed=2))
    assert speaking.text is not None
    assert generation.prompt_ids == speaking.text.encode_chat(messages)
    list(generation)
    ids = generation.prompt_ids
    assert generation.ids == [
        t.id for t in speaking.session().generate(ids, max_new_tokens=5, sampling=Sampling(temperature=1.0, seed=2))
    ]


def test_a_bundle_without_a_tokenizer_takes_ids(opened: Bundle) -> None:
    session = opened.session()
    for ask in (lambda: session.generate("hello"), lambda: session.chat([{"role": "user", "content": "hello"}])):
        with pytest.raises(UsageError, match=r"no tokenizer(.|\n)*--prompt-ids"):
            ask()
    assert [t.text for t in session.generate(PROMPT, max_new_tokens=3)] == ["", "", ""]


# -- the prompt and the context ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([], 5, "the prompt is empty"),
        ([3, -1], 5, rf"token id -1 is outside 0\.\.{tiny.VOCAB - 1}"),
        ([3, tiny.VOCAB], 5, f"token id {tiny.VOCAB} is outside"),
        ([1 << 70], 5, "outside"),
        (PROMPT, 0, "max_new_tokens 0 is not positive"),
        (PROMPT, -3, "max_new_tokens -3"),
    ],
)
def test_requests_that_make_no_sense(opened: Bundle, prompt: list[int], count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened.session().generate(prompt, max_new_tokens=count)


def test_an_empty_text_is_an_empty_prompt(speaking: Bundle) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        speaking.session().generate("")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 40, CONTEXT - 1, CONTEXT])
def test_the_context_can_be_filled_to_the_last_token(opened: Bundle, mode: str, size: int) -> None:
    """The last token needs no cache row: prompt and new tokens may be one more than the context."""
    prompt = np.random.default_rng(size).integers(0, tiny.VOCAB, size).tolist()
    session = opened.session(**options(mode))
    generation = session.generate(prompt)
    assert len([*generation]) == CONTEXT - size + 1
    assert generation.stats.stop_reason == "length"
    with pytest.raises(ContextFull, match=rf"do not fit the context of {CONTEXT}(.|\n)*--context {CONTEXT + 2}"):
        session.generate(prompt, max_new_tokens=CONTEXT - size + 2)


def test_no_more_is_drafted_than_is_wanted(shelf: Any) -> None:
    """With layers that add next to nothing every draft is right, and only the request itself ends the drafting."""
    opened = shelf.bundle(at=[1], gain=0.001)
    session = opened.session(mode="exact", thresholds={1: {"max_prob": 0.0}})
    for count in range(2, 20):
        generation = session.generate(PROMPT, max_new_tokens=count)
        assert len([*generation]) == count
        assert session._stairs.length == len(PROMPT) + count - 1
        assert generation.stats.rejected == 0
        assert generation.stats.drafted >= (count - 1) * 8 // 9


def test_a_prompt_longer_than_the_context(opened: Bundle) -> None:
    with pytest.raises(ContextFull, match="97 prompt tokens do not fit the context of 96") as caught:
        opened.session().generate([1] * (CONTEXT + 1))
    assert caught.value.exit_status == 2


# -- the session's own limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(budget=st.integers(len(PROMPT) * LAYERS, 200), cap=st.integers(1, 8))
@hypothesis.settings(max_examples=30)
def test_a_budget_is_never_passed(opened: Bundle, mode: str, budget: int, cap: int) -> None:
    generation = opened.session(**options(mode), budget=budget, pending_cap=cap).generate(PROMPT, max_new_tokens=25)
    found = [token.id for token in generation]
    stats = generation.stats
    assert 1 <= len(found) == stats.tokens
    assert stats.layer_rows <= budget
    assert found == tiny.tokens(opened, PROMPT, 25, **options(mode), pending_cap=cap)[: len(found)]
    if stats.stop_reason == "budget":
        assert budget - stats.layer_rows < (cap + 1) * LAYERS
    else:
        assert stats.tokens == 25


def test_a_budget_that_the_prompt_alone_passes(opened: Bundle) -> None:
    with pytest.raises(UsageError, match=r"prompt alone costs 20 layer-rows, the budget is 19(.|\n)*raise the budget"):
        opened.session(budget=19).generate(PROMPT)
    with pytest.raises(UsageError, match="budget 0 is not a positive"):
        opened.session(budget=0)


@pytest.mark.parametrize("mode", ["exact", "confident"])
def test_a_minimum_depth_closes_shallower_exits(opened: Bundle, mode: str) -> None:
    for minimum, allowed in ((0, {1, 3, 4}), (1, {1, 3, 4}), (2, {3, 4}), (3, {3, 4}), (4, {4})):
        session = opened.session(**options(mode), minimum_depth=minimum)
        depths = {token.exit_layer for token in session.generate(PROMPT, max_new_tokens=60)}
        assert depths == allowed
    with pytest.raises(UsageError, match="minimum depth 5 is not from 0 to the model's 4 layers"):
        opened.session(minimum_depth=5)
    with pytest.raises(UsageError, match="minimum depth -1"):
        opened.session(minimum_depth=-1)


def test_a_request_may_be_stricter_than_the_policy_and_not_laxer(shelf: Any, tmp_path: Path) -> None:
    """Every draft is right here, so that a token shows the exit that drafted it."""
    path = tiny.bundle_at(tmp_path / "bundle", shelf.checkpoint(gain=0.001), [1, 3])
    exits = [e.model_dump() for e in Bundle.open(path, integrity="size").files.policy.exits]
    always = {1: {"max_prob": 0.0}, 3: {"max_prob": 0.0}}
    for policy, asked, expected in ((0, None, {1, 4}), (2, None, {3, 4}), (2, 1, {3, 4}), (1, 3, {3, 4}), (2, 4, {4})):
        write_overlay(path, "overlays/policy.json", {"exits": exits, "minimum_depth": policy, "budget": 200})
        opened = Bundle.open(path, integrity="size")
        session = opened.session(mode="exact", thresholds=always, minimum_depth=asked, budget=4000)
        generation = session.generate(PROMPT, max_new_tokens=100)
        assert {token.exit_layer for token in generation} == expected
        assert generation.stats.layer_rows <= 200
        assert generation.stats.stop_reason == "budget"


@pytest.mark.parametrize("cap", [0, -1, 9])
def test_a_pending_cap_out_of_range(opened: Bundle, cap: int) -> None:
    with pytest.raises(UsageError, match=f"pending cap {cap} is not from 1 to 8"):
        opened.session(mode="exact", pending_cap=cap)


@pytest.mark.parametrize("cap", [1, 3, 8])
def test_the_pending_cap_bounds_the_drafts(opened: Bundle, cap: int) -> None:
    """With exits that always fire, `cap` tokens are drafted between two full passes."""
    always = {1: {"max_prob": 0.0}, 3: None}
    session = opened.session(mode="exact", thresholds=always, pending_cap=cap)
    most = 0
    generation = session.generate(PROMPT, max_new_tokens=50)
    for _ in generation:
        most = max(most, session._stairs.pending)
    assert most <= cap + 1
    runs = "".join("." if t == 4 else "x" for t in generation.stats.exit_layers.elements())
    assert runs
    assert generation.stats.drafted >= 50 * cap / (cap + 1) - cap


def test_an_unknown_mode(opened: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no mode 'quick'(.|\n)*full, confident, exact"):
        opened.session(mode="quick")


def test_one_process_has_one_number_of_threads(opened: Bundle) -> None:
    with pytest.raises(UsageError, match="one thread pool"):
        Bundle.open(opened.files.path, threads=opened.threads + 1)


# -- thresholds and calibration ---------------------------------------------------------------------------------


def test_an_exit_can_be_closed(opened: Bundle) -> None:
    for mode in ("exact", "confident"):
        session = opened.session(mode=mode, thresholds={1: None, 3: {"max_prob": 0.05}})
        assert {t.exit_layer for t in session.generate(PROMPT, max_new_tokens=60)} == {3, 4}


@pytest.mark.parametrize("mode", ["exact", "confident"])
@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({2: {"max_prob": 0.5}}, r"no exit at layer 2(.|\n)*\[1, 3\]"),
        ({1: {"margin": 0.5}}, r"exit 1: thresholds for \['margin'\] where the gates are \['max_prob'\]"),
        ({1: {}}, "exit 1: thresholds for"),
        ({1: {"max_prob": 1.5}}, r"exit 1: max_prob 1\.5 is outside \[0, 1\]"),
        ({3: {"max_prob": -0.1}}, "exit 3: max_prob -0.1 is outside"),
        ({3: {"max_prob": float("nan")}}, "exit 3: max_prob nan is outside"),
    ],
)
def test_thresholds_that_are_none(opened: Bundle, mode: str, thresholds: dict[int, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened.session(mode=mode, thresholds=thresholds)


def test_confident_thresholds_move_within_the_calibrated_range(opened: Bundle) -> None:
    opened.session(mode="confident", thresholds={1: {"max_prob": 0.25}, 3: {"max_prob": 1.0}})
    for bold in ({1: {"max_prob": 0.2499}}, {3: {"max_prob": 0.0}}):
        with pytest.raises(Uncalibrated, match=r"bolder than calibrated: max_prob .*(.|\n)*calibrate at more risk"):
            opened.session(mode="confident", thresholds=bold)
    opened.session(mode="exact", thresholds={1: {"max_prob": 0.0}})  # drafts may be as bold as they like


def test_uncalibrated_exits_only_draft(shelf: Any) -> None:
    plain = shelf.bundle(at=[1, 3], gain=GAIN)
    for thresholds in (None, {1: {"max_prob": 0.99}}, {1: None, 3: None}):
        with pytest.raises(
            Uncalibrated, match=r"no calibration of these exits for fp32(.|\n)*calibrate BUNDLE(.|\n)*exact"
        ):
            plain.session(mode="confident", thresholds=thresholds)
    assert len(tiny.tokens(plain, PROMPT, 5, mode="exact", thresholds=BOLD)) == 5


def test_an_exit_that_the_calibration_leaves_closed_stays_closed(shelf: Any, tmp_path: Path) -> None:
    opened = tiny.calibrate(
        tiny.bundle_at(tmp_path / "bundle", shelf.checkpoint(gain=GAIN), [1, 3]), [None, {"max_prob": 0.0}]
    )
    assert {t.exit_layer for t in opened.session(mode="confident").generate(PROMPT, max_new_tokens=40)} == {3, 4}
    with pytest.raises(Uncalibrated, match="exit 1 has no calibrated threshold"):
        opened.session(mode="confident", thresholds={1: {"max_prob": 1.0}})


def test_a_model_without_exits_runs_in_every_mode(shelf: Any) -> None:
    plain = shelf.bundle(gain=GAIN)
    expected = tiny.tokens(plain, PROMPT, 20)
    assert tiny.tokens(plain, PROMPT, 20, mode="exact") == tiny.tokens(plain, PROMPT, 20, mode="confident") == expected


@pytest.mark.parametrize(
    ("threshold", "confidence", "passes"),
    [
        (0.5, 0.6, True), (0.5, 0.5, False), (0.5, 0.4, False), (0.0, 1.0, True), (1.0, 1.0, False),
        (0.5, float("nan"), False), (0.5, 1.5, False), (0.5, float("inf"), False), (None, float("nan"), True),
    ],
)  # fmt: skip
def test_a_cheap_gate_fires_strictly_and_in_range(threshold: float | None, confidence: float, passes: bool) -> None:
    rule = ExitRule.of(0, 1, {"max_prob": 0.0} if threshold is None else {"learned": threshold, "max_prob": 0.0})
    assert rule is not None
    assert rule.passes_cheap({"learned": confidence}) == passes


def test_never_closes_an_exit_whatever_else_it_says() -> None:
    assert ExitRule.of(0, 1, {"never": 0.0, "max_prob": 0.0}) is None
    rule = ExitRule.of(0, 1, {"learned": 0.25, "entropy": 1.5})
    assert rule is not None
    assert rule.cheap == {"learned": 0.25}
    np.testing.assert_array_equal(rule.bounds, [-1, -1, 1.5])


# -- numbers that are none --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["full", "exact"])
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_logits_that_are_not_finite_are_an_error(tmp_path: Path, name: str, mode: str, value: float) -> None:
    settings = tiny.config()
    tensors = tiny.weights(settings)
    tensors[name].reshape(-1)[5] = value
    opened = tiny.open_bundle(tmp_path / "bundle", tiny.checkpoint(tmp_path / "checkpoint", settings, tensors), [1, 3])
    session = opened.session(mode=mode, thresholds={1: {"max_prob": 0.0}} if mode == "exact" else None)
    for how in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(NumericError, match=r"logits are not finite(.|\n)*check the checkpoint's weights") as caught:
            list(session.generate(PROMPT, max_new_tokens=5, sampling=how))
        assert caught.value.exit_status == 1


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_bad_token_does_not_spoil_the_next_request(tmp_path: Path) -> None:
    settings = tiny.config()
    tensors = tiny.weights(settings)
    tensors["model.embed_tokens.weight"][9] = np.nan
    source = tiny.checkpoint(tmp_path / "checkpoint", settings, tensors)
    opened = tiny.open_bundle(tmp_path / "bundle", source, [1, 3])
    session = opened.session()
    expected = tiny.tokens(opened, PROMPT, 10)
    for bad in ([9], [1, 9], [1, 9, 9, 9], [9] * 70):
        with pytest.raises(NumericError):
            list(session.generate(bad, max_new_tokens=5))
        assert [t.id for t in session.generate(PROMPT, max_new_tokens=10)] == expected


# -- a bundle that is not intact --------------------------------------------------------------------------------


def test_a_changed_weight_is_noticed_when_opening(shelf: Any, tmp_path: Path) -> None:
    path = tiny.bundle_at(tmp_path / "bundle", shelf.checkpoint(gain=GAIN), [1])
    weights = path / "segments" / "segment_0.weights"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match="segment_0"):
        Bundle.open(path)
    assert isinstance(Bundle.open(path, integrity="size"), Bundle)


def test_every_fault_is_of_one_family() -> None:
    for kind in (UsageError, ContextFull, Uncalibrated, NumericError, IntegrityError):
        assert issubclass(kind, EECompileError)
