"""The cost model: rooflines by hand, its passes priced by the replay, memory, machines, and its own error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from profiled import build_tiny

from eecompile import pipeline
from eecompile.bench.cost import full_depth_seconds
from eecompile.bench.cost_check import check_costs
from eecompile.bench.cost_model import Setting, pass_bytes, predict_costs
from eecompile.bench.forecast import predict_build, rates_of, setting_of
from eecompile.bench.machine import _write_chain, measure_rates
from eecompile.bench.memory import memory_needed
from eecompile.bench.rates import Rates, rates_from_target
from eecompile.bench.work import Work
from eecompile.bench.work_bundle import works_from_bundle
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import write_overlay
from eecompile.engines.ort import processors
from eecompile.errors import UsageError
from eecompile.schema import CalibrationResult
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook
from eecompile.student.student import Student, open_student
from eecompile.target import Target, load_target, target_names

WORK = Work(weights=1000, products=100, values=10, looked_up=5, cached=4, attended=2, kernels=10, layers=1)
GPU = Rates(bandwidth=100, flops=1000, launch=0.5, kernel=0.25, overlaps=True, value=2, basis="paper")
CPU = replace(GPU, overlaps=False)
SETTING = Setting(cap=8, minimum_rows=1, prefill_rows=128, context=2048, slack=64)


def test_a_pass_takes_the_longer_of_moving_and_computing_or_both() -> None:
    moving, computing = (1000 + 3 * (5 + 40) + 4 * 64) / 100, 2 * 3 * (100 + 2 * 64) / 1000
    fixed = 0.5 + 10 * 0.25
    assert GPU.seconds(WORK, 3, 64) == pytest.approx(fixed + max(moving, computing))
    assert CPU.seconds(WORK, 3, 64) == pytest.approx(fixed + moving + computing)
    assert replace(CPU, flops=0).seconds(WORK, 3, 64) == pytest.approx(fixed + moving)


@given(st.integers(1, 128), st.integers(1, 128), st.integers(0, 2048), st.booleans())
def test_more_rows_and_longer_caches_never_take_less(rows: int, more: int, length: int, overlaps: bool) -> None:
    rates = replace(GPU, overlaps=overlaps)
    assert rates.seconds(WORK, rows, length) <= rates.seconds(WORK, rows + more, length)
    assert rates.seconds(WORK, rows, length) < rates.seconds(WORK, rows, length + more) or overlaps


def test_rates_of_a_data_sheet() -> None:
    orin = rates_from_target(load_target("jetson-orin"), "float16")
    assert orin.bandwidth == pytest.approx(0.8 * 204.8e9)
    assert orin.flops == pytest.approx(0.8 * 42.5e12)
    assert (orin.overlaps, orin.value) == (True, 2.0)
    wide = rates_from_target(load_target("jetson-orin"), "float32")
    assert (wide.flops, wide.value) == (pytest.approx(0.8 * 5.3e12), 4.0)


def test_a_processor_of_ones_own_adds_up(tmp_path: Path) -> None:
    fields = {**load_target("cpu").model_dump(), "bandwidth": 50e9, "flops": {"fp32": 1e11}}
    board = rates_from_target(Target.model_validate(fields), "float32")
    assert (board.flops, board.overlaps, board.value) == (1e11, False, 4.0)


@pytest.mark.parametrize("name", ["cpu", "rtx"])
def test_targets_that_stand_for_many_machines_have_no_rates(name: str) -> None:
    with pytest.raises(UsageError, match="does not say how fast its memory is"):
        rates_from_target(load_target(name), "float16")
    assert rates_of(load_target("rtx"), {"precision": "fp16"}, 64, 1e6) is None


def test_costs_are_priced_where_passes_are_made() -> None:
    costs = predict_costs({"segment_0": WORK}, CPU, SETTING)
    for rows, length in ((1, 64), (9, 512), (5, 2048), (128, 2048), (1, 300)):
        assert costs.seconds("segment_0", rows, length) == pytest.approx(CPU.seconds(WORK, rows, length))


def test_short_passes_are_padded() -> None:
    costs = predict_costs({"segment_0": WORK}, CPU, replace(SETTING, minimum_rows=2))
    assert costs.seconds("segment_0", 1, 64) == costs.seconds("segment_0", 2, 64) == CPU.seconds(WORK, 2, 64)


def test_engines_read_the_whole_cache_and_some_copy_it() -> None:
    fixed = replace(SETTING, fixed=True)
    assert predict_costs({"s": WORK}, GPU, fixed).seconds("s", 1, 64) == pytest.approx(GPU.seconds(WORK, 1, 2112))
    copied = predict_costs({"s": WORK}, GPU, replace(fixed, copies=True)).seconds("s", 1, 64)
    assert copied == pytest.approx(GPU.seconds(replace(WORK, cached=12), 1, 2112))


def test_bytes_of_passes() -> None:
    passes = {("s", 1): 2, ("s", 9): 1}
    expected = 2 * WORK.bytes(1, 512, 2) + WORK.bytes(9, 512, 2)
    assert pass_bytes({"s": WORK}, GPU, SETTING, passes) == pytest.approx(expected)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A tiny llama with plain exits after layers 1 and 2 of 3."""
    settings = tiny.config(num_hidden_layers=3, max_position_embeddings=96)
    return open_student(tiny.checkpoint(tmp_path_factory.mktemp("student") / "s", settings), [1, 2])


def test_a_forecast_of_exits_that_nothing_is_known_of(student: Student) -> None:
    """The bound: every token leaves at one exit. Depth, layer-rows and times are those of the replay's passes."""
    target = load_target("l4")
    found = predict_build(student, target, pipeline.plan(student, target, pipeline.BuildOptions()))
    assert [(f.mode, list(f.exits)) for f in found.forecasts] == [
        ("full", []), ("confident", [1]), ("confident", [2]), ("exact", [1]), ("exact", [2]),
    ]  # fmt: skip
    full, first, second = found.forecasts[:3]
    seconds = {g.graph: g.one_row or 0.0 for g in found.graphs}
    walked = sum(seconds[name] for name in ("embed", "segment_0", "segment_1", "segment_2", "head"))
    assert full.tokens_per_second == pytest.approx(1 / walked)
    assert (full.mean_depth, full.layer_rows) == (3, 3)
    assert first.speedup > second.speedup > 1
    assert first.mean_depth < second.mean_depth < 3
    assert first.bytes < second.bytes < full.bytes
    assert found.length == 96 + 64, "an engine's cache has one length"


def test_a_forecast_by_a_calibration_opens_what_pays(student: Student) -> None:
    """Exit 2 fires on nine of ten tokens, exit 1 asks its head each time for nothing."""
    point = {"level": 0.5, "thresholds": [{"max_prob": 0.5}] * 2, "risk": 0.0, "p_value": 0.01, "exit_rate": 0.5}
    calibration = CalibrationResult.model_validate({
        "precision": "fp32", "kv": "catch_up", "pending_cap": 8, "method": "learn-then-test", "loss": "disagreement",
        "risk": 0.02, "error": 0.05, "documents": 4, "tokens": 400, "data": "a" * 64, "gates": "b" * 64,
        "path": [{**point, "mean_depth": 2.0}], "chosen": 0, "traces": [("ha" * 9 + "hh") * 20],
    })  # fmt: skip
    schema = student.exits.schema.model_copy(update={"calibrations": [calibration]})
    known = replace(student, exits=replace(student.exits, schema=schema))
    slow = replace(GPU, bandwidth=1e9, flops=1e12, launch=0, kernel=1e-6)
    target = load_target("l4")
    plan = pipeline.plan(known, target, pipeline.BuildOptions())
    found = predict_build(known, target, plan, rates=slow).forecasts
    assert [f.mode for f in found] == ["full", "confident", "exact"]
    assert 0 not in [len(f.exits) for f in found[1:]] or all(f.speedup == 1 for f in found[1:] if not f.exits)
    assert all(1 not in f.exits for f in found)
    assert all(f.speedup >= 1 for f in found)
    assert "fp32 calibration" in found[1].basis


def test_int4_weights_are_multiplied_by_in_float16(student: Student) -> None:
    target = load_target("jetson-orin")
    plan = pipeline.plan(student, target, pipeline.BuildOptions(precision="int4"))
    rates = rates_of(target, plan, 32, 1e6)
    assert rates is not None
    assert rates.flops == pytest.approx(0.8 * 42.5e12)


@pytest.mark.parametrize("name", [n for n in target_names() if n != "cpu"])
def test_every_device_is_predicted(student: Student, name: str) -> None:
    target = load_target(name)
    found = predict_build(student, target, pipeline.plan(student, target, pipeline.BuildOptions()))
    assert bool(found.forecasts) == (name != "rtx")
    assert found.memory.fits == (True if name != "rtx" else None)
    assert found.to_dict()["memory"]["total"] == found.memory.total


def test_the_memory_of_a_plan(student: Student) -> None:
    spec = student.spec
    found = memory_needed(spec, SETTING, weights=1e6, cached=384, slots=4, value=2.0, limit=10**7)
    assert found.caches == 384 * 2112 * 4
    rows, widths = 4 * 128, 2 * 32 + max((4 + 2 * 2) * 8, 3 * 64)
    assert found.scratch == max(2 * rows * widths + 2 * rows * 2112 * 2, 4 * 9 * spec.vocab * 8)
    assert (found.total, found.fits) == (1e6 + found.caches + found.scratch, True)
    assert replace(found, limit=10**6).fits is False
    assert replace(found, limit=0).fits is None
    twice = replace(SETTING, copies=True)
    assert memory_needed(spec, twice, weights=0, cached=1, slots=1, value=2.0, limit=0).caches == 2 * 2112


def test_engines_hold_a_tied_head_of_their_own(tmp_path: Path) -> None:
    student = open_student(tiny.checkpoint(tmp_path / "tied", tiny.config(tie_word_embeddings=True)), [1])
    needs = []
    for target in (load_target("cpu"), load_target("jetson-orin")):
        plan = pipeline.plan(student, target, pipeline.BuildOptions(precision="fp16"))
        needs.append(predict_build(student, target, plan, rates=GPU).memory.weights)
    assert student.spec.tied
    assert needs[1] - needs[0] == pytest.approx(2 * student.spec.vocab * student.spec.hidden)


def test_the_setting_of_a_plan() -> None:
    plan: dict[str, Any] = {"pending_cap": 8, "minimum_rows": 2, "context": 100}
    found = [setting_of(load_target(name), plan) for name in ("cpu", "jetson-orin", "jetson-orin-jp6")]
    assert [(s.fixed, s.copies) for s in found] == [(False, False), (True, False), (True, True)]
    assert {(s.cap, s.minimum_rows, s.context, (s.context + s.slack) % 16) for s in found} == {(8, 2, 100, 0)}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_rates_of_this_machine(precision: str) -> None:
    found = measure_rates(48, precision, 1e6, threads=processors(), launch=1e-5)
    assert 1e6 < found.bandwidth < 1e13
    assert 1e6 < found.flops < 1e14
    assert 0 < found.kernel < 1e-2
    assert (found.launch, found.overlaps) == (1e-5, False)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_matrices_that_are_timed_are_read_from_memory(tmp_path: Path, precision: str) -> None:
    """ONNX Runtime keeps equal ones once, in the processor's caches."""
    book = WeightBook(tmp_path)
    _write_chain(GraphWriter("chain", book), 256, 6, precision)
    book.close()
    data = {name: (tmp_path / t.file).read_bytes()[t.offset :][: t.bytes] for name, t in book.stored.items()}
    values = [content for name, content in data.items() if not name.endswith(".scale")]
    assert len(set(values)) == len(values) == 6


def test_the_error_is_that_of_each_graph(tmp_path: Path) -> None:
    """A profile that the model itself wrote has none; one of twice the times is half off."""
    bundle = build_tiny(tmp_path)
    files = read_bundle(bundle, integrity="size")
    with pytest.raises(UsageError, match="no profile to compare with"):
        check_costs(files, rates=CPU)
    setting = Setting(8, 1, 128, 96, files.manifest.slack)
    costs = predict_costs(works_from_bundle(files.manifest, bundle), CPU, setting)
    for factor, error in ((1.0, 0.0), (2.0, -0.5)):
        passes = [
            {"graph": g, "rows": r, "length": n, "seconds": factor * costs.seconds(g, r, n)}
            for g in costs.curves for r in (1, 3, 9) for n in (64, 96)
        ]  # fmt: skip
        write_overlay(bundle, "overlays/profile-cpu.json", {"device": "paper", "threads": 1, "passes": passes})
        found = check_costs(read_bundle(bundle, integrity="size"), rates=CPU)
        assert found.error == pytest.approx(-error)
        assert found.token_error == pytest.approx(error)
        assert {g.graph: (g.passes, g.error, g.one_row) for g in found.graphs} == {
            name: (6, pytest.approx(-error), pytest.approx(error)) for name in costs.curves
        }
        assert found.token_predicted == pytest.approx(full_depth_seconds(files.manifest, costs, 96))
