"""Steps that decide on the GPU, on doubles: the tokens, depths and counts of the host's decisions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from commands import cli_json
from conditions_double import install_library, library_of
from cuda_double import FakeCuda
from doubled import (
    COUNT,
    EXACT,
    PROMPTS,
    check_arguments,
    in_threads,
    moving_bundle,
    opened,
)
from graphs_double import RuleBroken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trt_double import FakeTensorRT

from eecompile.engines import branches
from eecompile.engines.branches import Branches, BranchingGraph, Level
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.trt_runtime import TrtPass
from eecompile.errors import DeviceError, MissingBackend, UsageError
from eecompile.plugins.conditions import Conditions
from eecompile.plugins.library import PluginLibrary
from eecompile.runtime import Bundle, Sampling, backends, device_step
from eecompile.runtime.conditional import ConditionalDecoder, unfit
from eecompile.runtime.device_step import DeviceSteps
from eecompile.runtime.session import Session

FITTING: list[dict[str, Any]] = [
    {"mode": "full"},
    {"mode": "confident"},
    EXACT,
    {**EXACT, "pending_cap": 2},
    {"mode": "exact", "thresholds": {1: None, 3: {"margin": 0.0}}},
]


@pytest.fixture
def trt(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    install_library(monkeypatch, trt.cuda)
    return trt


def said(session: Session, prompt: list[int], count: int = COUNT, **how: Any) -> dict[str, Any]:
    """All that a request says, but for how long it took."""
    made = session.generate(prompt, max_new_tokens=count, stop=(), **how)
    tokens = list(made)
    stats = replace(made.stats, prefill_seconds=0.0, decode_seconds=0.0)
    pool = session._stairs.pool
    return {
        "ids": [t.id for t in tokens], "depths": [t.exit_layer for t in tokens], "stats": stats,
        "pool": (pool.passes, pool.rows),
    }  # fmt: skip


@pytest.mark.parametrize("how", FITTING, ids=str)
def test_a_step_says_what_the_host_would(built: dict[str, Path], trt: FakeTensorRT, how: dict[str, Any]) -> None:
    by_gpu, by_host = opened(built).session(**how), Bundle.open(built["plain"]).session(**how)
    assert (by_gpu.decision, by_host.decision) == ("conditional", "pinned")
    for prompt in (*PROMPTS, PROMPTS[0]):
        assert said(by_gpu, prompt) == said(by_host, prompt)
    assert by_gpu.decision == "conditional"


PROMPT = st.lists(st.integers(0, 40), min_size=1, max_size=30)
THRESHOLD = st.sampled_from([0.0, 0.02, 0.3, 0.45, 0.5, 0.55, 0.9])


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_leaves_where(both: tuple[Bundle, Bundle], data: st.DataObject) -> None:
    """Drafts of any thresholds, rolled back by the model as they fail, and refilled; another cap, another length."""
    thresholds: dict[int, Any] = {
        1: data.draw(st.none() | st.fixed_dictionaries({"learned": THRESHOLD, "max_prob": THRESHOLD})),
        3: data.draw(st.none() | st.fixed_dictionaries({"margin": THRESHOLD})),
    }
    cap, count = data.draw(st.integers(1, 8)), data.draw(st.integers(1, COUNT))
    by_gpu, by_host = (b.session(mode="exact", thresholds=thresholds, pending_cap=cap) for b in both)
    for prompt in data.draw(st.lists(PROMPT, min_size=1, max_size=2)):
        assert said(by_gpu, prompt, count) == said(by_host, prompt, count)
    assert by_gpu.decision == "conditional"


@pytest.fixture
def both(built: dict[str, Path], trt: FakeTensorRT) -> tuple[Bundle, Bundle]:
    return opened(built), Bundle.open(built["plain"])


def test_caches_that_are_copied_and_few_graphs(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest graph goes for a new one, and comes again."""
    monkeypatch.setattr(device_step, "KEPT_GRAPHS", 2)
    by_gpu, by_host = opened(built, "copied").session(**EXACT), Bundle.open(built["plain"]).session(**EXACT)
    before = len(trt.cuda.executables)
    for prompt in PROMPTS:
        assert said(by_gpu, prompt) == said(by_host, prompt)
    assert trt.cuda.calls["cudaGraphInstantiate"] - before > 3
    kept = [made for made in trt.cuda.executables.values() if len(made.parts) > 1]
    assert len(kept) <= 4  # the two, and what has yet to be destroyed


def test_small_heads_and_thresholds_that_move(trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle, thresholds = moving_bundle(tmp_path)
    how: dict[str, Any] = {"mode": "exact", "thresholds": thresholds}
    by_gpu, by_host = (Bundle.open(bundle, backend=name).session(**how) for name in ("tensorrt", "onnxruntime"))
    found = [said(by_gpu, prompt) for prompt in PROMPTS]
    assert found == [said(by_host, prompt) for prompt in PROMPTS]
    assert by_gpu.decision == "conditional"
    assert {graph for one in found for graph in one["stats"].declined} == {"head_low_rank", "head_shortlist", "head"}


def test_what_is_sampled_is_the_hosts(both: tuple[Bundle, Bundle]) -> None:
    """And greedy requests between, over what they left behind."""
    how = Sampling(temperature=0.9, seed=3)
    by_gpu, by_host = (b.session(**EXACT) for b in both)
    for prompt, sampling in ((PROMPTS[0], how), (PROMPTS[1], None), (PROMPTS[0], how), (PROMPTS[0], None)):
        assert said(by_gpu, prompt, sampling=sampling) == said(by_host, prompt, sampling=sampling)


def test_a_request_that_is_left_leaves_nothing(both: tuple[Bundle, Bundle]) -> None:
    by_gpu, by_host = (b.session(**EXACT) for b in both)
    for session in (by_gpu, by_host):
        left = session.generate(PROMPTS[1], stop=())
        assert [next(left).id for _ in range(5)]
    how = Sampling(temperature=0.9, seed=3)
    assert said(by_gpu, PROMPTS[0], sampling=how) == said(by_host, PROMPTS[0], sampling=how)
    assert said(by_gpu, PROMPTS[0]) == said(by_host, PROMPTS[0])


def test_sessions_share_a_gpu(built: dict[str, Path], trt: FakeTensorRT) -> None:
    """Two in turn, token by token: each has rows and graphs of its own."""
    gpu, cpu = opened(built), Bundle.open(built["plain"])
    runs = [gpu.session(**EXACT).generate(prompt, max_new_tokens=COUNT, stop=()) for prompt in PROMPTS]
    found: list[list[int]] = [[], []]
    for _ in range(COUNT):
        for run, ids in zip(runs, found, strict=True):
            ids.append(next(run).id)
    assert found == [tiny.tokens(cpu, prompt, COUNT, stop=(), **EXACT) for prompt in PROMPTS]


def test_threads_share_a_gpu_too(both: tuple[Bundle, Bundle], trt: FakeTensorRT) -> None:
    """Nothing of one slips into what the other captures."""
    assert in_threads(both[0], trt) == [tiny.tokens(both[1], PROMPTS[0], 3, stop=())] * 2


def test_one_launch_and_one_wait_a_token(both: tuple[Bundle, Bundle], trt: FakeTensorRT) -> None:
    session = both[0].session(mode="full")
    said(session, PROMPTS[0])
    before = dict(trt.cuda.calls)
    said(session, PROMPTS[0], 6)
    grown = {name: trt.cuda.calls[name] - before.get(name, 0) for name in ("cudaGraphLaunch", "cudaGraphInstantiate")}
    prefill = 1 + len(both[0].manifest.schedule) + 1  # embed, steps and head, captured by now or enqueued
    assert grown["cudaGraphInstantiate"] <= prefill
    assert 5 <= grown["cudaGraphLaunch"] <= 5 + prefill


def test_the_package_takes_these_arguments_too(
    both: tuple[Bundle, Bundle], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(both[0].session(**EXACT), PROMPTS[0])
    assert {"cudaGraphCreate", "cudaGraphInstantiate", "cudaGraphExecDestroy"} <= trt.cuda.arguments.keys()
    check_arguments(trt.cuda, monkeypatch)


def test_what_is_not_allowed_in_a_branch_goes_to_the_host(both: tuple[Bundle, Bundle], trt: FakeTensorRT) -> None:
    trt.node_kind = "host"
    by_gpu, by_host = (b.session(**EXACT) for b in both)
    assert said(by_gpu, PROMPTS[0]) == said(by_host, PROMPTS[0])
    assert by_gpu.decision == "pinned"
    assert trt.cuda.calls["cudaStreamBeginCapture"] > 1  # passes are captured one by one
    assert not [g for g in trt.cuda.graphs.values() if any(node.kind == "branch" for node in g.nodes)]


def test_a_failure_on_the_way_goes_to_the_host(both: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait on the GPU come back."""
    honest = DeviceSteps.prepare

    def prepare(self: DeviceSteps, token: int, exits: tuple[int, ...]) -> Any:
        if self._stairs.pending > 1:
            raise DeviceError("no more memory")
        return honest(self, token, exits)

    monkeypatch.setattr(DeviceSteps, "prepare", prepare)
    by_gpu, by_host = (b.session(**EXACT) for b in both)
    assert said(by_gpu, PROMPTS[1]) == said(by_host, PROMPTS[1])
    assert by_gpu.decision == "pinned"


def test_who_asks_for_the_gpu_gets_it_or_hears_why(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Bundle.open(built["engines"], backend="tensorrt", decision="conditional")
    session = gpu.session(**EXACT)
    with pytest.raises(UsageError, match="cannot decide here: the rule for skipped layers is propagate"):
        gpu.session(mode="confident", kv="propagate")
    trt.node_kind = "host"
    with pytest.raises(DeviceError, match="cudaGraphInstantiate failed"):
        said(session, PROMPTS[0])
    with pytest.raises(UsageError, match="nothing decides on a GPU here: the back end is not tensorrt"):
        Bundle.open(built["plain"], backend="onnxruntime", decision="conditional")
    with pytest.raises(UsageError, match="no decision 'maybe'"):
        Bundle.open(built["plain"], decision="maybe")
    monkeypatch.setattr(backends, "find_library", lambda given: None)
    with pytest.raises(MissingBackend, match="there is no plugin library"):
        Bundle.open(built["engines"], backend="tensorrt", decision="conditional")
    assert opened(built).session(**EXACT).decision == "pinned"


def test_who_asks_for_the_pinned_flag_gets_it(built: dict[str, Path], trt: FakeTensorRT) -> None:
    pinned = Bundle.open(built["engines"], backend="tensorrt", decision="pinned")
    assert pinned.session(**EXACT).decision == "pinned"
    assert pinned.graphs.unbranched == "the pinned flag was asked for"
    words = ("run", built["engines"], "--backend", "tensorrt", "--prompt-ids", "5,6,7", "--max-new-tokens", "9")
    found = [cli_json(*words, "--decision", decision)["token_ids"] for decision in ("pinned", "conditional")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("exit_", "rest", "why"),
    [
        ({}, {"minimum_rows": 2}, "more rows than wait"),
        ({"gates": ["saturation", "max_prob"]}, {}, "after layer 1 goes by saturation"),
        ({"gates": ["patience", "max_prob"]}, {}, "after layer 1 goes by patience"),
        ({}, {}, None),
    ],
)
def test_what_does_not_fit_is_known(
    both: tuple[Bundle, Bundle], exit_: dict[str, Any], rest: dict[str, Any], why: str | None
) -> None:
    gpu, plan = both[0], both[0].settings(**EXACT)
    first, *others = gpu.manifest.exits
    manifest = gpu.manifest.model_copy(update={"exits": [first.model_copy(update=exit_), *others], **rest})
    found = unfit(manifest, gpu.graphs, plan)
    assert (found is None) == (why is None)
    assert why is None or why in str(found)
    listening = [None if r is None else replace(r, votes=True) for r in plan.rules]
    assert "votes" in str(unfit(gpu.manifest, gpu.graphs, replace(plan, rules=listening)))


def test_a_library_without_these_functions_is_older(tmp_path: Path, trt: FakeTensorRT) -> None:
    library = PluginLibrary(tmp_path / "old.so", "0" * 64)
    with pytest.raises(MissingBackend, match="of an older eecompile"):
        Conditions(library, lambda path: SimpleNamespace())
    with pytest.raises(MissingBackend, match=r"knows no conditional nodes .*CUDA error 35"):
        Conditions(library, lambda path: library_of(trt.cuda, 35))
    with pytest.raises(MissingBackend, match="cannot be opened"):
        Conditions(library)


def test_a_gpu_that_takes_wrong_branches_is_not_used(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCuda, "set_condition", lambda self, condition, value: None)
    gpu = opened(built)
    assert "ran wrongly on this GPU" in gpu.graphs.unbranched
    assert gpu.session(**EXACT).decision == "pinned"


# -- rules, each broken once ---------------------------------------------------------------------------------------

honest_make, honest_section, honest_all = Branches.make, Level.section, DeviceSteps._all


def beside(self: Level) -> Any:
    self._last = None
    return honest_section(self)


def one_too_many(self: Branches, fill: Any) -> Any:
    def more(root: Level) -> None:
        fill(root)
        root.condition()

    return honest_make(self, more)


def only_prepared(self: TrtPass) -> None:
    if self._context is None:
        self._context = self._prepared(self._engine.shared.context(self._engine.engine, self._profile))


def graph_first(device: CudaDevice, graph: int, executable: Any) -> None:
    device.retire("cudaGraphExecDestroy", executable)
    device.retire("cudaGraphDestroy", graph)


def not_waited_for(self: DeviceSteps, shape: Any) -> Any:
    """The passes, of which the last has the device forget one wait."""
    device = self._branches.device
    forget = SimpleNamespace(warm=lambda: device.__dict__.update(wait=lambda: device.__dict__.pop("wait")))
    return [*honest_all(self, shape), forget]


RULES: dict[str, tuple[Any, str, Any, str]] = {
    "a section beside the one before": (Level, "section", beside, "runs beside what the graph has"),
    "a condition without a branch": (Branches, "make", one_too_many, "a condition without its one branch"),
    "no run before the capture": (TrtPass, "warm", only_prepared, "a capture without a run"),
    "no wait before the capture": (DeviceSteps, "_all", not_waited_for, "before the run before it was waited for"),
    "the graph goes first": (branches, "_retire", graph_first, "goes before its executable"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_of_graphs_shows(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    where, name, broken, message = RULES[rule]
    gpu = opened(built)
    monkeypatch.setattr(device_step, "KEPT_GRAPHS", 1)
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(RuleBroken, match=message):
        said(gpu.session(**EXACT), PROMPTS[0])


def test_who_does_not_wait_is_told(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads outcomes that the GPU has not written yet."""
    session = opened(built).session(**EXACT)
    said(session, PROMPTS[0])
    honest = BranchingGraph.launch

    def unheard(self: BranchingGraph) -> None:
        honest(self)
        trt.cuda.streams[int(self._device.stream)].queue.clear()

    monkeypatch.setattr(BranchingGraph, "launch", unheard)
    with pytest.raises(DeviceError, match="ended on the GPU before it was done"):
        said(session, PROMPTS[0])
    assert isinstance(session._decoder, ConditionalDecoder)
    for exit_ in range(2):  # nothing is left of the step before
        with pytest.raises(DeviceError, match="ended on the GPU before it was done"):
            _ = session._decoder._steps.exit(exit_).outcome
