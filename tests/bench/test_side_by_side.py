"""Batches in the cost model: the replay makes the passes of the real batch, and a pass reads the weights once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from scripted import HIDDEN, PATIENCE, PROMPT, _graphs, consistent, manifest_of

from eecompile import pipeline
from eecompile.bench.cost_model import Setting
from eecompile.bench.forecast import predict_build
from eecompile.bench.rates import Rates
from eecompile.bench.replay_batch import BatchReplay
from eecompile.bench.work import Work
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.batch import Batch
from eecompile.runtime.plan import PASS_ROWS, rows_of_a_pass
from eecompile.runtime.request import Limits, Settings
from eecompile.runtime.rules import ExitRule
from eecompile.student.student import Student, open_student
from eecompile.target import load_target

SCHEDULES = [([1, 2], [0, 1]), ([1, 1, 2], [0, 1, 2]), ([1, 2, 1], [0, 1, 1, 2])]
APART = 100  # positions between the documents of a batch, so that a row's position says whose it is
SETTING = Setting(cap=8, minimum_rows=1, prefill_rows=128, context=512, slack=64)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    segments, schedule = draw(st.sampled_from(SCHEDULES))
    exits = len(schedule) - 1
    usual = draw(st.sampled_from([".hax", "aaaaaaax", ".a", "ax", "h.a", ".........a"]))
    letters = st.lists(st.sampled_from(usual), min_size=exits, max_size=20 * exits).map("".join)
    return {
        "segments": segments, "schedule": schedule, "cap": draw(st.integers(1, 8)),
        "documents": [text[: len(text) // exits * exits] for text in draw(st.lists(letters, min_size=1, max_size=4))],
        "open_exits": draw(st.sets(st.integers(0, exits - 1))), "mode": draw(st.sampled_from(["confident", "exact"])),
        "each_pass": draw(st.sampled_from([1.0, 3.0, 12.0, 64.0])), "patient": draw(st.booleans()),
        "small": draw(st.booleans()),
    }  # fmt: skip


def one_exit(documents: Sequence[str], mode: str, *, cap: int = 8, each_pass: float = 12.0) -> dict[str, Any]:
    return {
        "segments": [1, 2], "schedule": [0, 1], "cap": cap, "documents": documents, "open_exits": {0}, "mode": mode,
        "each_pass": each_pass, "patient": False, "small": False,
    }  # fmt: skip


def play(manifest: Manifest, case: dict[str, Any]) -> tuple[Counter[tuple[str, int]], Counter[str]]:
    """The passes of a real batch over the scripted model by graph and rows, padding included, and its statistics. All
    prompts run before the first token is decoded."""
    passes: Counter[tuple[str, int]] = Counter()
    exits, slots = len(manifest.exits), len(case["documents"])
    graphs = _graphs(manifest, "".join(text.ljust(APART * exits, ".") for text in case["documents"]), passes)
    bounds = {"learned": 0.5, "max_prob": 0.5, "patience": PATIENCE}
    rules = [
        ExitRule.of(i, info.layer, {gate: bounds[gate] for gate in info.gates}) if i in case["open_exits"] else None
        for i, info in enumerate(manifest.exits)
    ]
    askers = [ExitAsker(engine, manifest.exits, i, HIDDEN, slots, {}) for i, engine in enumerate(graphs.exits)]
    settings = partial(Settings, case["mode"], rules, Limits(cap=case["cap"]), manifest.exits, "catch_up")
    batch = Batch(manifest, graphs, None, settings, askers, slots=slots, each_pass=case["each_pass"])
    requests = [
        batch.add([0] * (PROMPT + APART * i), max_new_tokens=len(text) // exits + 1, stop=())
        for i, text in enumerate(case["documents"])
    ]
    batch._admit()
    while joining := [live for live in batch._live if not live.started]:
        batch._prefill(joining)
    passes.clear()
    while batch.busy:
        batch.step()
    stats = Counter[str]()
    for request in requests:
        stats.update(tokens=len(request.ids) - 1, drafted=request.stats.drafted, rejected=request.stats.rejected)
    return passes, stats


@given(cases())
@example(one_exit(["aaaaaaaaaaaa"] * 3, "exact"))
@example(one_exit(["aaaaaaaaaaaa", "............", "aaaaxaaaaaaa"], "exact"))
@example(one_exit(["aaaaaaaaaaaa", "............", "aaaaaaaaaaaa"], "confident", cap=3))
@example(one_exit(["aaaa", ".", "aaaaaa", "aa"], "exact", each_pass=1.0))
def test_the_replay_makes_the_passes_of_the_real_batch(case: dict[str, Any]) -> None:
    """Slots that fall free, gaps that are closed and rows that ride along included."""
    slots = len(case["documents"])
    manifest = manifest_of(case["segments"], case["schedule"], 8, patient=case["patient"], small=case["small"])
    manifest = manifest.model_copy(update={"slots": slots})
    exits = len(manifest.exits)
    if case["patient"]:
        case = {**case, "documents": [consistent(text, exits) for text in case["documents"]]}
    passes, stats = play(manifest, case)
    replay = BatchReplay(
        manifest, case["documents"], case["open_exits"], replace(SETTING, cap=case["cap"]),
        patience=[PATIENCE if "patience" in info.gates else None for info in manifest.exits],
        exact=case["mode"] == "exact", slots=slots, each_pass=case["each_pass"],
    )  # fmt: skip
    replay.run()
    found = Counter[tuple[str, int]]()
    for (graph, wide, rows), count in replay.passes.items():
        found[graph, wide * rows] += count
    assert found == passes
    assert sum(replay.depths.values()) == stats["tokens"]
    assert (replay.drafted, replay.rejected) == (stats["drafted"], stats["rejected"])


def test_free_slots_take_the_next_documents() -> None:
    manifest = manifest_of([1, 2], [0, 1], 8)
    documents = ["..", "....", "", "..", "."]
    replay = BatchReplay(manifest, documents, {0}, SETTING, exact=False, slots=2, each_pass=64.0)
    replay.run()
    assert (replay.passes["embed", 1, 2], replay.passes["embed", 1, 1]) == (4, 1)
    assert (replay.steps, sum(replay.depths.values())) == (5, 9)
    endless = BatchReplay(manifest, iter(lambda: "..", None), {0}, SETTING, exact=False, slots=2, each_pass=64.0)
    endless.run(5)
    assert endless.passes["segment_1", 2, 1] == endless.steps == 5


def test_exits_with_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="layer of their own"):
        BatchReplay(
            manifest_of([1, 2], [0, 1], 8, layered=True), [], set(), SETTING, exact=True, slots=2, each_pass=1.0
        )


def test_a_pass_reads_the_weights_once_and_every_cache() -> None:
    work = Work(weights=1000, products=100, values=10, looked_up=5, cached=4, attended=2, kernels=10, layers=1)
    rates = Rates(bandwidth=100, flops=1000, launch=0.5, kernel=0.25, overlaps=False, value=2, basis="paper")
    assert work.bytes(3, 64, 2, slots=8) == 1000 + 8 * (3 * (5 + 2 * 2 * 10) + 4 * 64)
    assert work.operations(3, 64, slots=8) == 8 * work.operations(3, 64)
    seconds = rates.seconds(work, 3, 64, 8)
    assert seconds == pytest.approx(0.5 + 2.5 + work.bytes(3, 64, 2, 8) / 100 + 8 * work.operations(3, 64) / 1000)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A tiny llama with plain exits after layers 1 and 2 of 3."""
    settings = tiny.config(num_hidden_layers=3, max_position_embeddings=96)
    return open_student(tiny.checkpoint(tmp_path_factory.mktemp("student") / "s", settings), [1, 2])


@pytest.mark.parametrize("name", ["l4", "jetson-orin-jp6"])
def test_a_build_for_a_batch_says_what_its_slots_give_together(student: Student, name: str) -> None:
    target = load_target(name)
    found = predict_build(student, target, pipeline.plan(student, target, pipeline.BuildOptions(slots=4)))
    assert [(f.mode, f.exits, f.slots) for f in found.batch] == [(f.mode, f.exits, 4) for f in found.forecasts]
    for alone, together in zip(found.forecasts, found.batch, strict=True):
        assert 1 < together.tokens_per_second / alone.tokens_per_second <= 4
        assert together.bytes < alone.bytes
    assert found.batch[0].speedup == pytest.approx(1)
    assert found.batch[1].speedup > found.batch[2].speedup > 1
    assert found.batch[0].mean_depth == found.batch[0].layer_rows == 3
    one = predict_build(student, target, pipeline.plan(student, target, pipeline.BuildOptions()))
    assert one.batch == []


def test_a_full_step_of_a_batch_by_hand(student: Student) -> None:
    """On a machine where reading costs all, four sequences take the time of one but for what each has of its own."""
    rates = Rates(bandwidth=1e9, flops=0, launch=0, kernel=0, overlaps=True, value=4, basis="paper")
    target = load_target("cpu")
    plan = pipeline.plan(student, target, pipeline.BuildOptions(slots=4))
    found = predict_build(student, target, plan, rates=rates)
    alone, together = found.forecasts[0], found.batch[0]
    weights = sum(g.weights for g in found.graphs if not g.graph.startswith("exit"))
    assert 4 / together.tokens_per_second == pytest.approx((weights + 4 * (alone.bytes - weights)) / 1e9)
    assert together.bytes == pytest.approx(weights / 4 + alone.bytes - weights)


def test_what_a_pass_costs_in_rows() -> None:
    assert rows_of_a_pass(1.0, 1.8, 9) == pytest.approx(9.0)
    assert rows_of_a_pass(1.0, 1.0, 9) == 64.0
    assert rows_of_a_pass(0.1, 0.9, 9) == 1.0
    assert PASS_ROWS == 12.0
