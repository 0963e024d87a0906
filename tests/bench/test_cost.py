"""The simulated loop makes the passes that the real one makes, and prices them by interpolation."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from profiled import costs_of, profile_of
from scripted import PATIENCE, SMALL, consistent, manifest_of, play

from eecompile.bench.cost import Mode, PassCosts, full_depth_seconds, simulate
from eecompile.contract import APPROXIMATE
from eecompile.errors import UsageError

MODES: tuple[Mode, ...] = ("full", "confident", "exact")
SCHEDULES = [([2, 3], [0, 1]), ([1, 2, 3], [0, 1, 2]), ([2, 1], [0, 1, 1]), ([1] * 5, [0, 1, 2, 3, 4])]


def measured(graph: str, points: dict[tuple[int, int], float]) -> list[dict[str, Any]]:
    return [{"graph": graph, "rows": r, "length": n, "seconds": s} for (r, n), s in points.items()]


GRID = {(1, 64): 1.0, (1, 512): 2.0, (3, 64): 3.0, (3, 512): 6.0, (128, 512): 131.0}
COSTS = PassCosts.from_profile(profile_of(measured("segment_0", GRID) + costs_of(head=5.0)))


@pytest.mark.parametrize(
    ("rows", "length", "seconds"),
    [
        (1, 64, 1.0), (3, 512, 6.0), (1, 288, 1.5), (2, 64, 2.0), (2, 288, 3.0),  # on and between what was measured
        (1, 0, 1.0), (1, 4096, 2.0), (500, 512, 131.0), (128, 64, 131.0),  # nothing beyond: the nearest
        (8, 512, 11.0), (65, 288, (4.5 * 63 + 131 * 62) / 125),
    ],
)  # fmt: skip
def test_costs_are_linear_between_and_nearest_beyond(rows: int, length: int, seconds: float) -> None:
    assert COSTS.seconds("segment_0", rows, length) == pytest.approx(seconds)


def test_a_graph_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="segment_1"):
        COSTS.seconds("segment_1", 1, 64)


@given(st.integers(1, 200), st.integers(0, 5000))
def test_costs_stay_within_what_was_measured(rows: int, length: int) -> None:
    assert 1.0 <= COSTS.seconds("segment_0", rows, length) <= 131.0
    assert COSTS.seconds("head", rows, length) == 5.0


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    segments, schedule = draw(st.sampled_from(SCHEDULES))
    exits, cap = len(schedule) - 1, draw(st.integers(1, 8))
    usual = draw(st.sampled_from([".hax", "aaaaaaax", ".a", "ax", "h.a"]))  # long runs of drafts are what caps are for
    letters = draw(st.lists(st.sampled_from(usual), min_size=1, max_size=60 * exits).map("".join))
    return {
        "segments": segments, "schedule": schedule, "cap": cap, "letters": (letters + "." * exits)[: 60 * exits],
        "open_exits": draw(st.sets(st.integers(0, exits - 1))), "mode": draw(st.sampled_from(MODES)),
        "patient": draw(st.booleans()), "small": draw(st.booleans()),
        "layered": draw(st.booleans()),
    }  # fmt: skip


def one_exit(letters: str, mode: Mode, cap: int, *, layered: bool = False) -> dict[str, Any]:
    sizes = {
        "segments": [1, 1], "schedule": [0, 1], "cap": cap, "patient": False, "small": False, "layered": layered
    }  # fmt: skip
    return {**sizes, "letters": letters, "open_exits": {0}, "mode": mode}


@given(cases())
@example(one_exit("aaaax", "exact", 8))  # the last draft is wrong, and found by the flush at the end
@example(one_exit("xxxx", "exact", 1))
@example(one_exit("aaaaaaaa", "exact", 3))
@example(one_exit("aaaaaaaa", "confident", 3))
@example(one_exit("aaaaaaaa", "confident", 3, layered=True))
@example(one_exit("aax.aaaxaaaa", "exact", 3, layered=True))
def test_the_simulation_makes_the_passes_of_the_real_loop(case: dict[str, Any]) -> None:
    shape = {name: case[name] for name in ("patient", "small", "layered")}
    manifest = manifest_of(case["segments"], case["schedule"], 8, **shape)
    letters = case["letters"][: len(case["letters"]) // len(manifest.exits) * len(manifest.exits)]
    letters = consistent(letters, len(manifest.exits)) if case["patient"] else letters
    how = {name: case[name] for name in ("open_exits", "mode", "cap")}
    played = play(manifest, letters, **how)
    names = ["embed", "head", f"head_{SMALL}", *(f"segment_{i}" for i in range(5)), *(f"exit_{i}" for i in range(4))]
    costs = PassCosts.from_profile(profile_of(costs_of(**dict.fromkeys(names, 0.001))))
    patience = [PATIENCE if "patience" in e.gates else None for e in manifest.exits]
    found = simulate(manifest, costs, [letters], length=64, patience=patience, **how)
    assert dict(found.passes) == played.passes
    layers, tokens, stats = manifest.model.layers, len(letters) // len(manifest.exits), played.stats
    assert found.tokens == tokens == stats.tokens - 1
    assert (found.drafted, found.rejected) == (stats.drafted, stats.rejected)
    assert found.layer_rows_per_token * tokens == pytest.approx(stats.layer_rows - layers)  # less the prompt's row
    assert found.mean_depth * tokens == pytest.approx(stats.mean_depth * stats.tokens - layers)
    assert found.seconds_per_token * tokens == pytest.approx(0.001 * sum(played.passes.values()))


@pytest.mark.parametrize("kv", APPROXIMATE)
@given(case=cases())
@example(case=one_exit("aaaaaaaaaaaa", "confident", 3))
def test_the_same_with_the_other_rules(kv: str, case: dict[str, Any]) -> None:
    manifest = manifest_of(case["segments"], case["schedule"], 8)
    letters = case["letters"][: len(case["letters"]) // len(manifest.exits) * len(manifest.exits)]
    how: dict[str, Any] = {"open_exits": case["open_exits"], "mode": "confident", "cap": case["cap"], "kv": kv}
    played = play(manifest, letters, **how)
    names = ["embed", "head", *(f"{kind}_{i}" for i in range(5) for kind in ("segment", "kv", "exit"))]
    costs = PassCosts.from_profile(profile_of(costs_of(**dict.fromkeys(names, 0.001))))
    found = simulate(manifest, costs, [letters], length=64, **how)
    assert dict(found.passes) == played.passes
    layers, stats = manifest.model.layers, played.stats
    assert found.layer_rows_per_token * found.tokens == pytest.approx(stats.layer_rows - layers)
    assert found.mean_depth * found.tokens == pytest.approx(stats.mean_depth * stats.tokens - layers)
    assert found.layer_rows_per_token == pytest.approx(found.mean_depth)  # nothing is caught up


@pytest.mark.parametrize("mode", ["confident", "exact"])
def test_documents_add_up_and_none_reaches_into_the_next(mode: Mode) -> None:
    manifest, costs = manifest_of([1, 1], [0, 1], 8), PassCosts.from_profile(profile_of(UNIT))
    texts = ["aaa", "xah.", "a"]
    how: dict[str, Any] = {"open_exits": {0}, "mode": mode, "cap": 8, "length": 64}
    alone = [simulate(manifest, costs, [text], **how) for text in texts]
    together = simulate(manifest, costs, texts, **how)
    assert together.tokens == 8
    assert together.seconds_per_token * 8 == pytest.approx(sum(s.seconds_per_token * s.tokens for s in alone))
    assert sum(together.passes.values()) == sum(sum(s.passes.values()) for s in alone)
    assert together.layer_rows_per_token * 8 == pytest.approx(sum(s.layer_rows_per_token * s.tokens for s in alone))


def test_the_ideal_counts_only_the_exits_on_the_way() -> None:
    """Two open exits: a token that leaves at the first never asks the second."""
    manifest = manifest_of([1, 1, 1], [0, 1, 2], 8)
    costs = PassCosts.from_profile(profile_of(UNIT + costs_of(segment_2=7.0, exit_1=3000.0)))
    for letters, seconds in (("aa", 1101), (".a", 101 + 10 + 4000), ("h.", 1101 + 10 + 3000 + 1007)):
        found = simulate(manifest, costs, [letters], open_exits={0, 1}, mode="confident", cap=8, length=64)
        assert found.seconds_per_token == pytest.approx(seconds)
        assert found.ideal_seconds_per_token == pytest.approx(seconds)


UNIT = costs_of(embed=0.0, segment_0=1.0, segment_1=10.0, exit_0=100.0, head=1000.0)


@pytest.mark.parametrize(
    ("letters", "mode", "seconds", "ideal"),
    [
        ("h", "full", 1011, 1011),
        ("h", "confident", 2111, 2111),  # the head ran for nothing
        (".", "confident", 1111, 1111),
        ("aa", "confident", 2 * 1101, 2 * 1101),
        ("a.", "confident", 1101 + 1111, 1101 + 1111),  # the second token's pass catches the first one's row up
        ("aa", "exact", 2 * 1101 + 1010, 2 * 1101),  # one pass verifies both
        ("xa", "exact", (2 * 1101 + 1010) + (1101 + 1010), 2111 + 1101),  # rolled back: the second is drafted again
    ],
)
def test_what_tokens_cost(letters: str, mode: Mode, seconds: float, ideal: float) -> None:
    manifest, costs = manifest_of([1, 1], [0, 1], 8), PassCosts.from_profile(profile_of(UNIT))
    found = simulate(manifest, costs, [letters], open_exits={0}, mode=mode, cap=8, length=64)
    assert found.seconds_per_token * len(letters) == pytest.approx(seconds)
    assert found.ideal_seconds_per_token * len(letters) == pytest.approx(ideal)


def test_without_open_exits_every_mode_costs_full_depth() -> None:
    manifest, costs = manifest_of([1, 1], [0, 1], 8), PassCosts.from_profile(profile_of(UNIT))
    for mode in MODES:
        found = simulate(manifest, costs, ["axh."], open_exits=(), mode=mode, cap=8, length=64)
        assert found.seconds_per_token == found.ideal_seconds_per_token == full_depth_seconds(manifest, costs, 64)
        assert found.mean_depth == 2


def test_catching_up_is_priced_by_its_rows() -> None:
    manifest = manifest_of([1, 1], [0, 1], 8)
    rows = measured("segment_1", {(1, 64): 10.0, (3, 64): 16.0})
    costs = PassCosts.from_profile(profile_of([p for p in UNIT if p["graph"] != "segment_1"] + rows))
    found = simulate(manifest, costs, ["aa."], open_exits={0}, mode="confident", cap=8, length=64)
    assert found.seconds_per_token * 3 == pytest.approx(2 * 1101 + 1101 + 16)
    assert found.layer_rows_per_token * 3 == pytest.approx(3 + 3)


def test_a_layer_is_priced_by_the_rows_that_waited_for_it() -> None:
    """Two exits; while tokens leave at the first, the second sees none of them. A row of an MLP block is one row."""
    manifest = manifest_of([1, 1, 1], [0, 1, 2], 8)
    rows = measured("exit_1", {(1, 64): 1.0, (3, 64): 2.0})
    costs = PassCosts.from_profile(profile_of(costs_of(**dict.fromkeys(FREE, 0.0)) + rows))
    for adapter, seconds in (("layer", 1 + 2 + 1.5), ("mlp", 3), ("norm", 3)):
        kinds = [e.model_copy(update={"adapter": adapter} if i else {}) for i, e in enumerate(manifest.exits)]
        found = simulate(
            manifest.model_copy(update={"exits": kinds}), costs, [".a" + "a." * 2 + ".a" + "a." + ".a"],
            open_exits={0, 1}, mode="confident", cap=8, length=64,
        )  # fmt: skip
        assert found.seconds_per_token * found.tokens == pytest.approx(seconds)


FREE = ("embed", "head", "segment_0", "segment_1", "segment_2", "exit_0")


@pytest.mark.parametrize("traces", [[], [""], ["", ""]])
def test_no_tokens_are_refused(traces: list[str]) -> None:
    manifest, costs = manifest_of([1, 1], [0, 1], 8), PassCosts.from_profile(profile_of(UNIT))
    with pytest.raises(ValueError, match=re.escape("no token")):
        simulate(manifest, costs, traces, open_exits={0}, mode="exact", cap=8, length=64)
