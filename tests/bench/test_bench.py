"""`bench` on tiny bundles: every figure that can be known beforehand, and every way to be refused."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from measured import EXITS, mode, open_exits, result, with_drafts

from eecompile.bench import bench as bench_module
from eecompile.bench.agreement import agreements, confident_rules, policy_tokens
from eecompile.bench.bench import bench_tables, peak_memory_mb, run_bench
from eecompile.bench.prompts import BUILT_IN, prompt_ids
from eecompile.bench.results import BenchResult, GraphTime
from eecompile.bench.runs import PeerFailed, Run, alternate
from eecompile.bench.summary import graph_times, mode_result, speed
from eecompile.bench.timing import PassLog, PassRecord, timed_bundle
from eecompile.bench.uncut import UncutModel
from eecompile.errors import UsageError
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.session import Stats
from eecompile.runtime.trace import Tracer

PROMPTS = [[5, 17, 101, 3, 44], [9, 9, 120, 6], list(range(20))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.fixture(scope="module", params=[0.1, 0.3])
def exiting(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exits that fire often (wrongly, on random weights) and sometimes."""
    return open_exits(tmp_path_factory.mktemp("exiting") / "bundle", source, request.param)


def test_every_mode_is_measured_and_the_figures_agree(exiting: Bundle) -> None:
    stages: list[str] = []
    found = run_bench(exiting, PROMPTS, max_new_tokens=24, rounds=2, progress=stages.append)
    assert set(found.modes) == {"full", "confident", "exact"}
    assert not found.refused
    full, confident, exact = (found.modes[m] for m in ("full", "confident", "exact"))
    tokens = len(PROMPTS) * 23  # the first of each prompt is prefill's
    assert [m.tokens for m in (full, confident, exact)] == [tokens] * 3
    assert (full.speedup, full.ideal_speedup, full.mean_depth, full.layer_rows) == (1, 1, 4, 4)
    assert full.exit_layers == {4: tokens}
    assert full.agreement == 1
    assert (exact.equal_tokens, exact.agreement) == (tokens, 1)
    assert exact.drafted > 0
    assert exact.drafted >= exact.rejected
    assert confident.mean_depth < 4
    assert confident.layer_rows > confident.mean_depth  # what was skipped is caught up, except at the end
    assert sum(confident.exit_layers.values()) == tokens
    for measured in found.modes.values():
        assert len(measured.round_seconds) == 2
        assert sum(measured.time.values()) * tokens == pytest.approx(sorted(measured.round_seconds)[0], rel=1e-6)
        assert measured.tokens_per_second == pytest.approx(1 / sum(measured.time.values()))
        assert measured.overhead == pytest.approx(measured.time["runtime"] / sum(measured.time.values()))
        assert not measured.note
    assert found.uncut is not None
    assert found.uncut.equal_tokens == tokens
    assert found.chain_over_uncut == pytest.approx(found.uncut.tokens_per_second / full.tokens_per_second)
    assert found.peak_memory_mb > 10
    assert {t.graph for t in found.graphs} >= {"embed", "segment_0", "segment_3", "exit_0", "head"}
    assert all(t.rows == 1 for t in found.graphs)
    assert "round 2 of 2, prompt 3 of 3" in stages
    assert BenchResult.model_validate_json(found.model_dump_json()) == found


def test_json_has_the_documented_names(exiting: Bundle) -> None:
    found = run_bench(exiting, PROMPTS[:1], max_new_tokens=8, rounds=1).model_dump(mode="json")
    for name in ("full", "confident", "exact"):
        assert {
            "tokens_per_second", "agreement", "mean_depth", "ideal_speedup", "speedup", "layer_rows"
        } <= set(found["modes"][name])  # fmt: skip
    assert {"chain_over_uncut", "peers"} <= set(found)


def test_confident_mode_without_a_calibration_is_refused_and_the_rest_runs(source: Path, tmp_path: Path) -> None:
    found = run_bench(tiny.open_bundle(tmp_path / "b", source, EXITS), PROMPTS[:1], max_new_tokens=4, rounds=1)
    assert set(found.modes) == {"full", "exact"}
    assert "no calibration" in found.refused["confident"]
    assert any("refused: no calibration" in str(row) for row in bench_tables(found)[0][2])


def test_another_bundle_takes_turns(exiting: Bundle, source: Path, tmp_path: Path) -> None:
    other = open_exits(tmp_path / "other", source, 0.2)
    found = run_bench(exiting, PROMPTS, max_new_tokens=12, rounds=2, beside=other)
    assert set(found.beside) == {"full", "confident", "exact"}
    assert found.beside["full"].agreement == found.beside["exact"].agreement == 1
    alone = run_bench(other, PROMPTS, max_new_tokens=12, rounds=1)
    assert found.beside["confident"].agreement == alone.modes["confident"].agreement
    for mode_, its in found.beside.items():
        assert its.speed_ratio == pytest.approx(its.tokens_per_second / found.modes[mode_].tokens_per_second)
    assert any(title == "the other bundle" for title, _, _ in bench_tables(found))
    wide = tiny.checkpoint(tmp_path / "wide", tiny.config(vocab_size=tiny.VOCAB + 8))
    with pytest.raises(UsageError, match="other tokens"):
        run_bench(exiting, PROMPTS, beside=open_exits(tmp_path / "wide-bundle", wide, 0.2))


def test_a_closed_policy_is_full_depth_and_says_so(source: Path, tmp_path: Path) -> None:
    tiny.bundle_at(tmp_path / "b", source, EXITS)
    closed = with_drafts(tmp_path / "b", [None] * 3)
    found = run_bench(closed, PROMPTS[:1], max_new_tokens=6, rounds=1)
    assert "no exit is open" in found.modes["exact"].note
    assert found.modes["exact"].mean_depth == 4


def test_a_bundle_without_exits(shelf: Any) -> None:
    found = run_bench(shelf.bundle(), None, max_new_tokens=6, rounds=1)
    assert found.modes["full"].note == "the bundle has no exits"
    assert found.prompts == 4  # random ids: there is no tokenizer


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_uncut_graph_gives_full_modes_tokens(shelf: Any, precision: str) -> None:
    bundle = shelf.bundle(at=EXITS, precision=precision)
    log = PassLog()
    model = UncutModel(bundle, log)
    for prompt in (PROMPTS[0], [int(i) for i in np.random.default_rng(1).integers(0, tiny.VOCAB, 150)], PROMPTS[1]):
        log.take()
        ids, seconds = model.generate(prompt, 40)
        expected = bundle.session().generate(prompt, max_new_tokens=40, stop=())
        assert ids == [t.id for t in expected]
        assert seconds > 0
        chunks = -(-len(prompt) // bundle.manifest.prefill_rows)
        assert [record.graph for record in log.take()] == ["uncut"] * (chunks + 39)


def test_a_bundle_without_the_uncut_graph(exiting: Bundle) -> None:
    graphs = exiting.manifest.graphs.model_copy(update={"reference": None})
    manifest = exiting.manifest.model_copy(update={"graphs": graphs})
    files = SimpleNamespace(manifest=manifest, path=Path("here"))
    with pytest.raises(UsageError, match="no uncut graph"):
        UncutModel(SimpleNamespace(files=files, manifest=manifest))  # type: ignore[arg-type]


def test_every_pass_is_timed_and_the_bundle_is_left_alone(exiting: Bundle) -> None:
    log = PassLog()
    session = timed_bundle(exiting, log).session(mode="exact")
    generation = session.generate(PROMPTS[0], max_new_tokens=20, stop=())
    ids = [t.id for t in generation]
    passes = log.take()
    segments = [p for p in passes if p.graph.startswith("segment_")]
    assert len(segments) == generation.stats.segment_passes
    assert sum(p.rows for p in segments) == generation.stats.layer_rows  # one layer a segment
    assert all(p.seconds > 0 for p in passes)
    assert ids == tiny.tokens(exiting, PROMPTS[0], 20)
    assert not log.passes


@pytest.mark.parametrize("cap", [1, 3, 8])
@pytest.mark.parametrize("bold", [0.05, 0.15, 0.3])
def test_agreement_is_what_the_decoder_would_have_emitted(source: Path, tmp_path: Path, cap: int, bold: float) -> None:
    """Teacher-force the decoder itself: give it the full model's token whatever it emitted."""
    bundle = open_exits(tmp_path / "b", source, bold)
    prompt = PROMPTS[2]
    continuation = tiny.tokens(bundle, prompt, 40)
    session = bundle.session(mode="confident", pending_cap=cap)
    one = session._settings.continuation(session._stairs, Sampling())
    one.stairs.prefill(prompt)
    session._decoder.start([one])
    emitted = []
    for token in continuation[:-1]:
        one.last = token
        session._decoder.step([one])
        emitted.append(one.certain[0].id)
    trace = Tracer(bundle).trace([*prompt, *continuation[:-1]])
    assert policy_tokens(trace, confident_rules(bundle), first=len(prompt), cap=cap) == emitted
    if cap == bundle.manifest.pending_cap:
        equal, total = agreements(bundle, [prompt], [continuation])["confident"]
        assert (equal, total) == (sum(a == b for a, b in zip(emitted, continuation[1:], strict=True)), 39)
        assert equal < total  # random weights: some exits are wrong, or this test shows nothing


def test_minimum_depth_closes_the_exits_below_it(source: Path, tmp_path: Path) -> None:
    bundle = open_exits(tmp_path / "b", source, 0.1)
    policy = bundle.files.policy.model_copy(update={"minimum_depth": 2})
    changed: Any = SimpleNamespace(files=SimpleNamespace(policy=policy), manifest=bundle.manifest)
    assert [r is None for r in confident_rules(changed)] == [True, False, False]


def _run(seconds: float, depths: list[int], passes: list[PassRecord], declined: int = 0) -> Run:
    return Run(list(range(len(depths))), seconds, passes, depths, Stats(declined=Counter(head=declined)))


def test_the_middle_round_counts() -> None:
    rounds = [[_run(s, [4] * 5, [])] for s in (3.0, 1.0, 2.0, 9.0)]
    assert speed(rounds) == speed(rounds)
    assert speed(rounds).middle == 2
    assert speed(rounds).tokens_per_second == 4 / 2.0
    assert speed(rounds).seconds == [3.0, 1.0, 2.0, 9.0]


def test_ideal_speedup_is_the_way_down_and_nothing_else(exiting: Bundle) -> None:
    """By hand: embed 1, segments 10, head 5, exits 2; four tokens, three steps more that were rolled back."""
    seconds = {"embed": 1.0, "head": 5.0, **{f"segment_{i}": 10.0 for i in range(4)}, "exit_0": 2.0}
    times = [GraphTime(graph=g, rows=1, seconds=s, passes=1) for g, s in seconds.items()]
    passes = [PassRecord("embed", 1, 1.0)] * 8 + [PassRecord("exit_0", 1, 2.0)] * 8 + [PassRecord("segment_3", 9, 99.0)]
    run = _run(400.0, [4, 1, 1, 2, 4], passes, declined=4)
    found = mode_result(exiting, "exact", [[run]], [[_run(800.0, [4] * 5, [])]], times, {})
    ways = (11 + 5) + (11 + 5) + (21 + 5) + (41 + 5)
    assert found.ideal_speedup == pytest.approx(4 * 46 / (ways + (8 * 2 + 4 * 5) / 2))
    assert found.speedup == pytest.approx(2.0)
    assert found.mean_depth == 2.0
    assert found.time == {"embed": 2.0, "exit_0": 4.0, "segment_3": 24.75, "runtime": 69.25}
    assert found.overhead == pytest.approx(0.6925)


def test_graph_times_are_those_of_lone_rows() -> None:
    full = [[_run(1.0, [4, 4], [PassRecord("segment_0", 1, s) for s in (1.0, 9.0, 2.0)])]]
    exact = [[_run(1.0, [4, 4], [PassRecord("segment_0", 5, 7.0), PassRecord("exit_0", 1, 3.0)])]]
    found = {(t.graph, t.rows): t.seconds for t in graph_times({"full": full, "exact": exact})}
    assert found == {("segment_0", 1): 2.0, ("exit_0", 1): 3.0}


def test_contenders_take_turns_and_one_that_fails_is_dropped() -> None:
    order: list[str] = []

    class Scripted:
        def __init__(self, name: str, fails_at: int = 99) -> None:
            self.name, self.left = name, fails_at

        def run(self, prompt: list[int], tokens: int) -> Run:
            order.append(self.name)
            self.left -= 1
            if self.left < 0:
                raise PeerFailed("it fell over")
            return Run(prompt[:1] * tokens, 1.0)

    found = alternate({"a": Scripted("a"), "b": Scripted("b", 2)}, [[1], [2]], 3, 2, lambda stage: None)
    assert order == ["a", "b", "a", "b", "a", "b", "a"]
    assert found.failed == {"b": "it fell over"}
    assert list(found.runs) == ["a"]
    assert [[run.ids for run in r] for r in found.runs["a"]] == [[[1] * 3, [2] * 3]] * 2


@pytest.mark.parametrize("options", [{"peers": ["vllm"]}, {"max_new_tokens": 1}, {"rounds": 0}])
def test_requests_that_measure_nothing(exiting: Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_bench(exiting, PROMPTS, **options)


def test_absent_peers_are_skipped_with_the_reason(exiting: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def available(self) -> str | None:
            return "nowhere is not installed: pip install nowhere"

    monkeypatch.setattr(bench_module, "PEERS", {"nowhere": Absent})
    found = run_bench(exiting, PROMPTS[:1], max_new_tokens=4, rounds=1, peers=["nowhere"])
    assert found.skipped == {"nowhere": "nowhere is not installed: pip install nowhere"}
    assert not found.peers
    assert any("skipped" in str(row) for row in bench_tables(found)[1][2])


def test_a_budget_that_ends_every_request_at_once(exiting: Bundle) -> None:
    policy = exiting.files.policy.model_copy(update={"budget": 4 * len(PROMPTS[0])})
    frugal = SimpleNamespace(**{**vars(exiting.files), "policy": policy})
    spent = Bundle(frugal, exiting.graphs, exiting.text, exiting.threads)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="budget"):
        run_bench(spent, PROMPTS[:1], max_new_tokens=4, rounds=1)


def test_prompts_that_cannot_be_used(exiting: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for source in (empty, tmp_path / "absent.txt", [], ["text, but no tokenizer"]):
        with pytest.raises(UsageError):
            prompt_ids(exiting, source)
    assert BUILT_IN


def test_default_prompts_fit_a_small_context(shelf: Any) -> None:
    bundle = shelf.bundle(at=(1,), context=12)
    assert run_bench(bundle, None, max_new_tokens=4, rounds=1).prompt_tokens == 4 * 3


def test_peak_memory_never_falls() -> None:
    before = peak_memory_mb()
    block = np.ones(30_000_000)
    assert peak_memory_mb() >= before
    assert peak_memory_mb() > block.nbytes / 1e6


def test_tables_show_everything() -> None:
    tables = bench_tables(result("a" * 64, modes={"full": mode()}, refused={"confident": "why"}))
    words = str(tables)
    for said in ("full", "refused: why", "genai", "skipped: not installed", "chain / uncut = 1.020", "head"):
        assert said in words
    assert all(len(columns) == len(row) for _, columns, rows in tables for row in rows)


# -- side by side -----------------------------------------------------------------------------------------------


def test_sequences_side_by_side_are_measured_against_themselves_alone(exiting: Bundle) -> None:
    found = run_bench(exiting, PROMPTS, max_new_tokens=12, rounds=1, batch=4).batch
    assert found is not None
    assert set(found.modes) == {"full", "confident", "exact"}
    for measured in found.modes.values():
        assert measured.tokens == measured.equal_tokens == 4 * 12
        assert measured.ratio == pytest.approx(measured.tokens_per_second / measured.alone_tokens_per_second)
        assert 0 < measured.overhead < 1
    full, confident = found.modes["full"], found.modes["confident"]
    assert (full.speedup, full.speedup_alone, full.ideal_speedup, full.padding) == (1, 1, 1, 0)
    assert full.passes_per_token == 1  # four steps of the schedule, for four sequences at once
    assert full.passes_per_token_alone == 4
    assert full.mean_depth == 4
    assert confident.mean_depth < 4
    assert confident.passes_per_token < confident.passes_per_token_alone


@pytest.mark.parametrize("slots", [1, 65])
def test_a_batch_that_cannot_be_is_refused(exiting: Bundle, slots: int) -> None:
    with pytest.raises(UsageError, match=f"batch of {slots}"):
        run_bench(exiting, PROMPTS[:1], max_new_tokens=2, rounds=1, batch=slots)


def test_the_batch_has_a_table(exiting: Bundle) -> None:
    found = run_bench(exiting, PROMPTS[:1], max_new_tokens=4, rounds=1, batch=2)
    titles = [title for title, _, rows in bench_tables(found) if rows]
    assert "2 sequences side by side" in titles
    assert BenchResult.model_validate_json(found.model_dump_json()) == found
    plain = found.model_copy(update={"batch": None})
    assert not [title for title, _, _ in bench_tables(plain) if "side by side" in title]
