"""Every criterion and every kind of head: exact mode is full mode, confident mode is its rule on the recorded states, a
batch is its rows, and closing an exit only takes fires away."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.bundle.ranges import criterion_range
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.gates import ExitGates, GateState
from eecompile.runtime.rules import ExitRule, listeners, with_listeners
from eecompile.runtime.trace import DocumentTrace, Tracer
from eecompile.runtime.walk import agree, streaks
from eecompile.shapes import Adaptive, Decay, HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec

GAIN = 0.35  # layers that add little: exits agree with the last layer about half of the time
TOKENS = np.random.default_rng(1).permutation(tiny.VOCAB)[:90].tolist()
HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=TOKENS),
]
GATES: dict[str, list[Any]] = {
    "patience": ["patience"],
    "patience+prob": ["max_prob", "patience"],
    "saturation": ["saturation"],
    "saturation+margin": ["saturation", "margin"],
    "router": ["router"],
    "predictor": ["predictor"],
    "all": ["saturation", "router", "predictor", "patience"],
    "learned+patience": ["learned", "patience"],
}
KINDS = ["full", "thin", "few"]


def exits_of(gates: str, head: str, *, own_routers: bool = False, schedule: Any = None) -> list[ExitSpec]:
    """The same exit after each of three layers; with one router for all, or one each."""
    names = GATES.get(gates, [gates])

    def router(number: int) -> RouterShape | None:
        if "router" not in names or (number and not own_routers):
            return None
        return RouterShape(choices=4 - number)

    return [
        ExitSpec(
            layer=number + 1, gates=names, head=head, gate_units=3 * ("learned" in names), router=router(number),
            predictor=PredictorShape(head="few", units=8) if "predictor" in names else None, schedule=schedule,
        )
        for number in range(3)
    ]  # fmt: skip


def bundle_of(shelf: Any, exits: Sequence[ExitSpec]) -> Bundle:
    opened: Bundle = shelf.bundle(exits=exits, heads=HEADS, gain=GAIN)
    return opened


def quantile(trace: DocumentTrace, exit_: int, gate: Any, share: float) -> float:
    """A threshold that about this share of an exit's tokens pass, in range."""
    if gate == "patience":
        return float(round(2 * (1 - share)))
    values = trace.exits[exit_].value(gate)
    values = values[np.isfinite(values)]
    at = 1 - share if gate != "entropy" else share
    low, high = criterion_range(gate, tiny.VOCAB)
    return float(np.clip(np.quantile(values, at), low, high)) if len(values) else low


def thresholds_of(opened: Bundle, shares: Sequence[float | None]) -> dict[int, Any]:
    """Thresholds by layer at which each exit fires on about this share of tokens; None closes it."""
    trace = Tracer(opened).trace(np.random.default_rng(7).integers(0, tiny.VOCAB, 120).tolist())
    return {
        info.layer: None if share is None else {gate: quantile(trace, i, gate, share) for gate in info.gates}
        for i, (info, share) in enumerate(zip(opened.manifest.exits, shares, strict=True))
    }


PROMPTS = st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=40)
SHARES = st.lists(st.none() | st.floats(0.2, 1.0), min_size=3, max_size=3)
SCHEDULES = st.sampled_from([None, Decay(kind="decay", tokens=16), Adaptive(kind="adaptive", low=0.02, high=0.4)])


@pytest.mark.parametrize("gates", [*GATES, "scheduled"])
def test_exact_is_full(shelf: Any, gates: str) -> None:
    """Whatever the head, thresholds, caps and sampling; drafts are made, kept and refused on the way."""
    seen: Counter[str] = Counter()

    @given(
        head=st.sampled_from(KINDS), shares=SHARES, prompt=PROMPTS, cap=st.integers(1, 8), own=st.booleans(),
        warm=st.booleans(), schedule=SCHEDULES,
    )  # fmt: skip
    @settings(max_examples=15)
    def check(
        head: str, shares: list[float | None], prompt: list[int], cap: int, own: bool, warm: bool, schedule: Any
    ) -> None:
        scheduled = gates == "scheduled"
        names, moves = ("patience+prob", schedule) if scheduled else (gates, None)
        opened = bundle_of(shelf, exits_of(names, head, own_routers=own, schedule=moves))
        how = Sampling(temperature=0.7, seed=3) if warm else Sampling()
        full = tiny.tokens(opened, prompt, 24, how)
        session = opened.session(mode="exact", thresholds=thresholds_of(opened, shares), pending_cap=cap)
        run = session.generate(prompt, max_new_tokens=24, sampling=how)
        assert [t.id for t in run] == full
        seen.update(drafted=run.stats.drafted, rejected=run.stats.rejected, kept=run.stats.drafted - run.stats.rejected)

    check()
    assert min(seen[key] for key in ("drafted", "rejected", "kept")) > 5, seen


@pytest.mark.parametrize("precision", c.QUANTISED)
@pytest.mark.parametrize("gates", ["all", "patience+prob"])
def test_exact_is_full_in_small_precisions(shelf: Any, gates: str, precision: str) -> None:
    drafted = 0
    for head in KINDS:
        opened = shelf.bundle(exits=exits_of(gates, head), heads=HEADS, gain=GAIN, precision=precision)
        drafts = thresholds_of(opened, [0.9, 0.9, 1.0])
        for seed, how in enumerate((Sampling(), Sampling(temperature=0.8, seed=4))):
            prompt = np.random.default_rng(seed).integers(0, tiny.VOCAB, 8).tolist()
            run = opened.session(mode="exact", thresholds=drafts).generate(prompt, max_new_tokens=30, sampling=how)
            assert [t.id for t in run] == tiny.tokens(opened, prompt, 30, how)
            drafted += run.stats.drafted
    assert drafted > 10


def simulate(trace: DocumentTrace, exits: Sequence[ExitSpec], chosen: Sequence[Any], first: int, cap: int) -> list[Any]:
    """(token, layers) that confident mode emits, written from the criteria's definitions and nothing of the runtime.

    An exit's cheap gates gate its head; what is asked of the exits before is what the trace says of them.
    """
    said, waited, out = trace.exits, 0, []
    for t in range(first, len(trace.ids)):
        waited += 1
        emitted = (int(trace.final.token[t]), 4)
        for g, (exit_, bounds) in enumerate(zip(exits, chosen, strict=True)):
            if bounds is None or waited > cap:
                continue
            if all(passes(gate, bounds[gate], said, g, t) for gate in exit_.gates) and bool(said[g].confirmed[t]):
                emitted = (int(said[g].token[t]), exit_.layer)
                break
        waited = 0 if emitted[1] == 4 else waited
        out.append(emitted)
    return out


def passes(gate: str, bound: float, said: Sequence[Any], g: int, t: int) -> bool:
    if gate == "patience":
        votes = [int(said[i].token[t]) for i in range(g + 1)]
        streak = next((n for n in range(1, g + 1) if votes[g - n] != votes[g]), g + 1)
        return streak > bound
    value = float(said[g].value(gate)[t])
    return math.isfinite(value) and value > (bound if gate in c.CHEAP_CRITERIA else np.float32(bound))


@pytest.mark.parametrize("gates", GATES)
def test_confident_is_its_rule_on_the_recorded_states(shelf: Any, tmp_path: Any, gates: str) -> None:
    rng, depths = np.random.default_rng(5), Counter[int]()
    for number, head in enumerate(KINDS):
        exits = exits_of(gates, head, own_routers=bool(number % 2))
        path = tiny.bundle_at(tmp_path / head, shelf.checkpoint(None, exits, HEADS, gain=GAIN))
        bold = {gate: criterion_range(gate, tiny.VOCAB)[0] for gate in exits[0].gates}
        opened = tiny.calibrate(path, [bold] * 3)
        for shares in ([0.5, 0.5, 0.5], [None, 0.7, None], [0.3, None, 0.8], [None, None, 0.6]):
            chosen = thresholds_of(opened, shares)
            prompt = rng.integers(0, tiny.VOCAB, 9).tolist()
            for cap in (2, 8):
                session = opened.session(mode="confident", pending_cap=cap, thresholds=chosen)
                run = list(session.generate(prompt, max_new_tokens=40))
                trace = Tracer(opened).trace([*prompt, *(t.id for t in run)][:-1])
                expected = simulate(trace, exits, list(chosen.values()), len(prompt), cap)
                assert [(t.id, t.exit_layer) for t in run[1:]] == expected
                depths.update(t.exit_layer for t in run)
    assert {2, 3, 4} <= set(depths), depths


def test_a_schedule_is_never_bolder_than_the_calibrated_threshold(shelf: Any, tmp_path: Any) -> None:
    """Decay is CALM's formula with its limit at the threshold; adaptive only ever raises it in confident mode."""
    for schedule in (Decay(kind="decay", tokens=20), Adaptive(kind="adaptive", low=0.0, high=0.5)):
        exits = exits_of("max_prob", "full", schedule=schedule)
        path = tiny.bundle_at(tmp_path / schedule.kind, shelf.checkpoint(None, exits, HEADS, gain=GAIN))
        bounds = [{"max_prob": 0.12}, {"max_prob": 0.1}, {"max_prob": 0.06}]
        opened = tiny.calibrate(path, bounds)
        prompt = [3, 1, 4, 1, 5]
        run = list(opened.session(mode="confident").generate(prompt, max_new_tokens=60))
        trace = Tracer(opened).trace([*prompt, *(t.id for t in run)][:-1])
        early = 0
        for position, token in enumerate(run[1:], len(prompt)):
            if token.exit_layer == 4:
                continue
            early += 1
            value = trace.exits[token.exit_layer - 1].max_prob[position]
            least = bounds[token.exit_layer - 1]["max_prob"]
            if isinstance(schedule, Decay):
                step = position - len(prompt) + 1
                least = min(1.0, 0.9 * (least / 0.9) + 0.1 * math.exp(-4 * step / 20))
            assert value > np.float32(least)
        assert early > 3


@pytest.mark.parametrize("gates", GATES)
def test_a_batch_is_its_rows(shelf: Any, gates: str) -> None:
    """N rows of N sequences in one ask, some of which skipped exits that others were asked at."""
    exits = exits_of(gates, "few")
    opened = bundle_of(shelf, exits)
    chosen = thresholds_of(opened, [0.4, 0.6, 0.8])
    rules = [ExitRule.of(i, layer, bounds) for i, (layer, bounds) in enumerate(chosen.items())]
    heard = with_listeners(rules, opened.manifest.exits)
    gates_ = ExitGates(opened.manifest.exits, opened.askers(8), opened.heads(8))
    rows = np.random.default_rng(2).standard_normal((3, 8, 32)).astype(np.float32)
    rows[1:, ::2] = rows[0, ::2] + 0.01 * rows[1:, ::2]  # half of them hardly change
    together, alone = ([GateState(heard) for _ in range(8)] for _ in range(2))
    asked = [range(8), range(8), range(8)], [[0, 1, 2, 5], [3, 4, 6, 7]]
    for state in (*together, *alone):
        state.start(3)
        state.begin(4)
    fired = 0
    for g in range(3):
        expected = [gates_.ask(g, rows[g][i : i + 1], [alone[i]])[0] for i in range(8)]
        groups = asked[1] if g == 0 else [list(asked[0][g])]
        found: dict[int, Any] = {}
        for group in groups:
            answers = gates_.ask(g, rows[g][group], [together[i] for i in group])
            found |= dict(zip(group, answers, strict=True))
        assert [found[i] for i in range(8)] == expected
        fired += sum(token is not None for token in expected)
    assert fired
    assert sum((s.declined for s in together), Counter()) == sum((s.declined for s in alone), Counter())


@given(
    patience=st.lists(st.none() | st.floats(0, 5), min_size=5, max_size=5), opened=st.sets(st.integers(0, 4)),
    gates=st.lists(st.sampled_from(sorted(GATES)), min_size=5, max_size=5),
)  # fmt: skip
def test_more_open_exits_listen_to_no_fewer(patience: list[Any], opened: set[int], gates: list[str]) -> None:
    exits = [exits_of(name, "full")[0].model_copy(update={"layer": i + 1}) for i, name in enumerate(gates)]
    asked, votes = listeners(patience, exits, sorted(opened))
    for smaller in (opened - {g} for g in opened):
        fewer = listeners(patience, exits, sorted(smaller))
        assert fewer[0] <= asked
        assert fewer[1] <= votes


def test_streaks_count_from_one_and_start_again() -> None:
    votes = [[1, 1, 1, 2, 2, 1], [3, 3, 4, 4, 4, 4]]
    counted = np.ones(2, np.int64)
    found = [counted]
    for before, now in zip(np.array(votes).T[:-1], np.array(votes).T[1:], strict=True):
        counted = streaks(counted, before == now)
        found.append(counted)
    assert np.array(found).T.tolist() == [[1, 2, 3, 1, 2, 1], [1, 2, 1, 2, 3, 4]]


def test_agreement_by_arg_max_and_by_distance() -> None:
    a = np.array([[1, 2, 3], [5, 1, 1], [1, np.nan, 0], [1, 2, np.inf]])
    b = np.array([[0, 0, 9], [1, 5, 1], [1, np.nan, 0], [0, 1, 5]])
    assert agree(a, b).tolist() == [True, False, False, False]
    values = np.array([0.1, 0.5, np.nan, np.inf])
    assert agree(values, np.array([0.15, 0.61, np.nan, np.inf]), tau=0.1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -1.5])
@pytest.mark.parametrize("gate", c.CHEAP_CRITERIA)
def test_what_is_no_number_or_out_of_range_continues(gate: Any, value: float) -> None:
    low, _ = criterion_range(gate, tiny.VOCAB)
    rule = ExitRule.of(0, 1, {gate: low})
    assert rule is not None
    assert not rule.passes_cheap({gate: value})
    assert rule.passes_cheap({gate: 0.5})
    assert not ExitRule.of(0, 1, {gate: 0.5}).passes_cheap({gate: 0.5}), "strictly"  # type: ignore[union-attr]


def test_an_open_exit_that_needs_an_earlier_one_is_not_told_by_closing_it(shelf: Any) -> None:
    """Patience and saturation at exit 3 say the same whether exit 2 may stop or is only listened to."""
    for gates in ("patience", "saturation", "router", "predictor"):
        opened = bundle_of(shelf, exits_of(gates, "full"))
        at = thresholds_of(opened, [None, None, 0.6])
        drafts: Mapping[int, Any] = {1: None, 2: None, **{3: at[3]}}
        run = opened.session(mode="exact", thresholds=drafts).generate([1, 2, 3], max_new_tokens=60)
        assert [t.id for t in run] == tiny.tokens(opened, [1, 2, 3], 60)
        assert run.stats.drafted > 3, gates
