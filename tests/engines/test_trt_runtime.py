"""The back end tensorrt on doubles: the tokens of the CPU in every mode, and TensorRT's rules, each broken once."""

import hashlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from commands import cli_json
from cuda_double import FakeCuda, RuleBroken
from doubled import add_engines, device_bundle, install, on_host
from trt_double import FakeTensorRT

from eecompile.bench import profile
from eecompile.engines import cuda_memory
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.plan import BuildPlan
from eecompile.engines.records import EngineOptions
from eecompile.engines.trt_runtime import TrtEngine, TrtPass, TrtRuntime
from eecompile.errors import EECompileError, IntegrityError, MissingBackend, UsageError
from eecompile.plugins.library import find_library
from eecompile.runtime import Bundle, Sampling, backends
from eecompile.schema import Thresholds
from eecompile.student.exits import ExitSpec

PROMPTS = ([5, 6, 7], [9] * 40)
EXITS = [
    ExitSpec(layer=1, gates=["learned", "max_prob"], gate_units=8, adapter="affine"),
    ExitSpec(layer=3, gates=["margin"]),
]
BOLD: dict[int, Thresholds | None] = {1: {"learned": 0.4, "max_prob": 0.02}, 3: {"margin": 0.0}}
COUNT = 24
_KIND_AT = {"cudaMemcpyAsync": 3, "cudaMemcpy2DAsync": 6, "cudaStreamBeginCapture": 1}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle for a device, calibrated; and copies of it with engines, whose caches are updated in place or copied.

    Its graphs compute in float32, so that what a double runs is what ONNX Runtime runs of the bundle's own, bit by bit.
    """
    root = tmp_path_factory.mktemp("engines")
    source = tiny.add_exits(tiny.checkpoint(root / "checkpoint"), EXITS)
    plain = device_bundle(
        root / "plain",
        source,
        context=96,
        precision="fp32",
        cache="fp32",
        kv=("catch_up", "propagate", "selected"),
        slots=3,
    )
    for kv in ("propagate", "selected", "catch_up"):
        tiny.calibrate(plain, [BOLD[1], BOLD[3]], kv)
    return {"plain": plain} | {
        name: add_engines(Path(shutil.copytree(plain, root / name))) for name in ("engines", "copied")
    }


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch)


def opened(built: dict[str, Path], name: str = "engines") -> Bundle:
    return Bundle.open(built[name], backend="tensorrt")


@pytest.fixture(autouse=True)
def copied_caches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle "copied" has caches that its engines cannot update in place, as in the dialect classic."""
    honest = backends.read_plan

    def read(path: Path) -> BuildPlan:
        plan = honest(path)
        if path.parents[1].name != "copied":
            return plan
        graphs = [g.model_copy(update={"in_place": {}, "copied": {**g.copied, **g.in_place}}) for g in plan.graphs]
        return plan.model_copy(update={"graphs": graphs})

    monkeypatch.setattr(backends, "read_plan", read)


def runtime_of(bundle: Bundle) -> TrtRuntime:
    engine = bundle.graphs.embed
    assert isinstance(engine, TrtEngine)
    return engine.shared


EXACT: dict[str, Any] = {"mode": "exact", "thresholds": BOLD}
MODES: list[dict[str, Any]] = [
    {"mode": "full"},
    {"mode": "confident"},
    {"mode": "confident", "kv": "propagate"},
    {"mode": "confident", "kv": "selected"},
    EXACT,
    {"mode": "exact", "thresholds": BOLD, "pending_cap": 2},
]


@pytest.mark.parametrize("how", MODES, ids=lambda how: "-".join(str(v) for v in how.values() if v is not BOLD))
@pytest.mark.parametrize("name", ["engines", "copied"])
def test_sessions_give_the_tokens_of_the_cpu(
    built: dict[str, Path], trt: FakeTensorRT, name: str, how: dict[str, Any]
) -> None:
    cpu, gpu = Bundle.open(built["plain"]), opened(built, name)
    session = gpu.session(**how)
    for prompt in (*PROMPTS, PROMPTS[0]):  # the first again, over captured graphs and used caches
        made = session.generate(prompt, max_new_tokens=COUNT, stop=())
        assert [t.id for t in made] == tiny.tokens(cpu, prompt, COUNT, stop=(), **how)
    assert made.stats.mean_depth < 4 or how["mode"] == "full"
    assert trt.cuda.calls["cudaGraphLaunch"] > COUNT
    assert not runtime_of(gpu).uncaptured


def test_float16_engines_give_what_their_graphs_give(built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle = add_engines(device_bundle(tmp_path / "half", built["plain"].parent / "checkpoint", context=96))
    host, gpu = on_host(bundle), Bundle.open(bundle, backend="tensorrt")
    for how in (MODES[0], EXACT):
        expected = tiny.tokens(host, PROMPTS[1], COUNT, stop=(), **how)
        assert tiny.tokens(gpu, PROMPTS[1], COUNT, stop=(), **how) == expected
    assert runtime_of(gpu).memory.length == 160


def test_the_older_dialect_runs(built: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plain operators, caches that are copied, the decision a plugin's, of which the double has the function."""
    install(monkeypatch, version="10.3.0")
    source, older = built["plain"].parent / "checkpoint", "jetson-orin-jp6"
    bundle = device_bundle(tmp_path / "b", source, target=older, precision="fp32", cache="fp32", context=96)
    add_engines(bundle, target=older, tensorrt="10.3.0")
    cpu, gpu = (Bundle.open(bundle, backend=name) for name in ("onnxruntime", "tensorrt"))
    for how in (MODES[0], EXACT):
        expected = tiny.tokens(cpu, PROMPTS[0], COUNT, stop=(), **how)
        assert tiny.tokens(gpu, PROMPTS[0], COUNT, stop=(), **how) == expected
    assert not runtime_of(gpu).uncaptured


def test_verify_bench_and_run_take_the_back_end(built: dict[str, Path], trt: FakeTensorRT) -> None:
    """`run` says the same; `verify` holds the engines to the model; `bench` leaves out the uncut graph, the CPU's."""
    words = ("run", built["engines"], "--prompt-ids", "5,6,7", "--max-new-tokens", "9", "--backend")
    assert cli_json(*words, "tensorrt")["token_ids"] == cli_json(*words, "onnxruntime")["token_ids"]
    launched = trt.cuda.calls["cudaGraphLaunch"]
    assert cli_json("verify", built["engines"], "--backend", "tensorrt", "--tokens", "4")["passed"]
    assert trt.cuda.calls["cudaGraphLaunch"] > launched
    measured = cli_json(
        "bench", built["engines"], "--backend", "tensorrt", "--rounds", "1", "--max-new-tokens", "4"
    )  # fmt: skip
    assert measured["machine"]["backend"] == "tensorrt"
    assert measured["machine"]["device"] == "Double"
    assert measured["uncut"] is None


def test_a_profile_is_the_gpus(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "QUICK", profile.Effort((16, 40), (20,), 0.0, 1, 1))
    measured = profile.measure_profile(opened(built), quick=True)
    assert measured["device"] == "Double"
    passes: Any = measured["passes"]
    assert {"embed", "segment_0", "exit_1", "kv_1", "head"} <= {p["graph"] for p in passes}


def test_samples_read_the_logits(built: dict[str, Path], trt: FakeTensorRT) -> None:
    how = Sampling(temperature=0.9, seed=3)
    expected = tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], COUNT, how, stop=())
    assert tiny.tokens(opened(built), PROMPTS[0], COUNT, how, stop=()) == expected


@pytest.mark.parametrize("name", ["engines", "copied"])
def test_batches_give_what_sequences_give_alone(built: dict[str, Path], trt: FakeTensorRT, name: str) -> None:
    """Slots begin inside of the caches, are cleared, and move."""
    prompts = [[3, 4], [8] * 30, [1], [2, 5, 7], [6] * 12]
    found = {r.number: r.ids for r in opened(built, name).generate_many(prompts, slots=3, max_new_tokens=12, stop=())}
    cpu = Bundle.open(built["plain"])
    assert found == {i: tiny.tokens(cpu, prompt, 12, stop=()) for i, prompt in enumerate(prompts)}
    assert trt.cuda.calls["cudaMemset2DAsync"]


def test_a_sequence_moves_to_a_free_slot(built: dict[str, Path], trt: FakeTensorRT) -> None:
    found = []
    for bundle in (Bundle.open(built["plain"]), opened(built)):
        batch = bundle.batch(slots=3)
        requests = [batch.add(prompt, max_new_tokens=n, stop=()) for prompt, n in (([3], 3), ([4, 5], 20))]
        list(batch.run())
        found.append([request.ids for request in requests])
    assert found[0] == found[1]
    assert trt.cuda.calls["cudaMemcpy2DAsync"]


def test_weights_are_put_into_engines_without(built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built["plain"], tmp_path / "bundle"))
    add_engines(bundle, options=EngineOptions(compute="float32", stripped=True))
    gpu = Bundle.open(bundle, backend="tensorrt")
    assert tiny.tokens(gpu, [3, 4], 6, stop=()) == tiny.tokens(
        Bundle.open(bundle, backend="onnxruntime"), [3, 4], 6, stop=()
    )


def test_engines_of_another_device_run_where_it_is(built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")), sm=[90])
    with pytest.raises(IntegrityError, match="another compute capability: 90"):
        Bundle.open(bundle, backend="tensorrt")
    add_engines(bundle, target="other")
    assert Bundle.open(bundle, backend="tensorrt").backend == "tensorrt"
    assert trt.deserialised


def test_the_plugin_that_engines_call_is_checked(
    built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libeecompile_plugins.so"
    library.write_bytes(b"a library")
    sha256 = hashlib.sha256(b"a library").hexdigest()
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")), plugin=sha256)
    loaded: list[Path] = []
    monkeypatch.setattr(backends, "load_library", lambda module, found: loaded.append(found.path))
    monkeypatch.setattr(backends, "find_library", lambda given: given and honest_library(given))
    with pytest.raises(IntegrityError, match="another plugin library"):
        Bundle.open(bundle, backend="tensorrt")
    assert trt.deserialised == []
    Bundle.open(bundle, backend="tensorrt", plugin=library)
    assert loaded == [library]


def test_what_cannot_be_captured_is_enqueued(built: dict[str, Path], trt: FakeTensorRT) -> None:
    trt.capturable = False
    gpu = opened(built)
    assert tiny.tokens(gpu, PROMPTS[0], COUNT, stop=()) == tiny.tokens(
        Bundle.open(built["plain"]), PROMPTS[0], COUNT, stop=()
    )
    assert "cudaGraphLaunch" not in trt.cuda.calls
    assert "segments/device_head.onnx" in runtime_of(gpu).uncaptured
    assert all(stream.graph is None for stream in trt.cuda.streams.values())


def test_an_engine_runs_by_itself(built: dict[str, Path], trt: FakeTensorRT) -> None:
    ids = np.array([[3, 1, 2]])
    expected = Bundle.open(built["plain"]).graphs.embed.run({"token_ids": ids})
    np.testing.assert_array_equal(
        opened(built).graphs.embed.run({"token_ids": ids})["hidden_out"], expected["hidden_out"]
    )


def test_nothing_is_kept_of_sessions_that_are_gone(built: dict[str, Path], trt: FakeTensorRT) -> None:
    """Their memory serves the next one; contexts and graphs go with their passes."""
    gpu = opened(built)
    for _ in range(2):
        tiny.tokens(gpu, PROMPTS[0], COUNT, stop=())
    allocated, graphs = trt.cuda.calls["cudaMalloc"], len(trt.cuda.graphs)
    alive = sum(context() is not None for context in trt.contexts)
    for _ in range(3):
        tiny.tokens(gpu, PROMPTS[0], COUNT, stop=())
    assert trt.cuda.calls["cudaMalloc"] == allocated
    assert sum(context() is not None for context in trt.contexts) == alive
    assert len(trt.cuda.graphs) == graphs


def test_everything_goes_with_the_bundle(built: dict[str, Path], trt: FakeTensorRT) -> None:
    tiny.tokens(opened(built), PROMPTS[0], 4, stop=())
    import gc

    gc.collect()
    assert not trt.cuda.memory
    assert not trt.cuda.streams
    assert not trt.cuda.graphs


def test_threads_share_a_bundle(built: dict[str, Path], trt: FakeTensorRT) -> None:
    found = in_threads(opened(built), trt)
    assert found == [tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], 3, stop=())] * 2


def in_threads(gpu: Bundle, trt: FakeTensorRT) -> list[list[int] | BaseException]:
    """What sessions in two threads give that are let into each other's passes wherever nothing keeps them out."""
    trt.pause = threading.Barrier(2, timeout=0.05)
    found: list[list[int] | BaseException] = []

    def run() -> None:
        try:
            found.append(tiny.tokens(gpu, PROMPTS[0], 3, stop=()))
        except BaseException as e:
            found.append(e)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# -- every rule, broken once --
def generate(built: dict[str, Path], trt: FakeTensorRT) -> None:
    tiny.tokens(opened(built), PROMPTS[0], COUNT, stop=(), mode="exact", thresholds=BOLD)


@contextmanager
def unlocked(self: CudaDevice) -> Iterator[int]:
    yield int(self.stream)


def without_scratch(self: TrtRuntime, engine: Any, profile: int) -> Any:
    context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_optimization_profile_async(profile, int(self.device.stream))
    return context


def own_scratch(self: TrtRuntime, engine: Any, profile: int) -> Any:
    return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.STATIC)


def without_shapes(self: TrtPass, context: Any) -> Any:
    for name, at in self._addresses.items():
        context.set_tensor_address(name, at)
    return context


def without_one_address(self: TrtPass, context: Any) -> Any:
    for name, shape in self._shapes.items():
        context.set_input_shape(name, shape)
    for name, at in list(self._addresses.items())[:-1]:
        context.set_tensor_address(name, at)
    return context


def captured_at_once(self: TrtPass) -> None:
    device, shared = self._engine.shared.device, self._engine.shared
    with device.ordered():
        device.wait()
        self._context = self._prepared(shared.context(self._engine.engine, self._profile))
        self._capture(device)
        device.launch(self._graph)
        device.wait()


def captured_unwaited(self: TrtPass) -> None:
    device, shared = self._engine.shared.device, self._engine.shared
    with device.ordered():
        self._context = self._prepared(shared.context(self._engine.engine, self._profile))
        self._enqueue(self._context)
        self._capture(device)
        device.wait()


def in_a_capture(act: Callable[[TrtPass], object]) -> Callable[[TrtPass, Any], None]:
    """TrtPass._enqueue that does something it must not while it is captured."""
    honest = TrtPass._enqueue

    def enqueue(self: TrtPass, context: Any) -> None:
        honest(self, context)
        if self._context is not None and context is self._context and self._ran:
            act(self)

    return enqueue


def hoard(one: TrtPass) -> None:
    kept = one._engine.shared.__dict__.setdefault("hoard", [])
    kept.append(one._engine.memory.scratch((1 << 21,), np.uint8))


def shared_context_for_all(self: TrtRuntime, engine: Any, profile: int) -> Any:
    kept = self.__dict__.setdefault("kept", {})
    if id(engine) not in kept:
        kept[id(engine)] = honest_context(self, engine, profile)
    return kept[id(engine)]


honest_context, honest_library = TrtRuntime.context, find_library


RULES: dict[str, tuple[type, str, Any, str]] = {
    "no shapes": (TrtPass, "_prepared", without_shapes, "no shape or address is set"),
    "an output unbound": (TrtPass, "_prepared", without_one_address, "no shape or address is set"),
    "no scratch memory": (TrtRuntime, "context", without_scratch, "no scratch memory"),
    "scratch of its own": (TrtRuntime, "context", own_scratch, "scratch memory of its own"),
    "no wait": (CudaDevice, "wait", lambda self: None, "under way|before the run before it"),
    "captured without a run": (TrtPass, "__call__", captured_at_once, "capture without a run"),
    "captured before the run is done": (TrtPass, "__call__", captured_unwaited, "before the run before it was waited"),
    "one context for all graphs": (TrtRuntime, "context", shared_context_for_all, "context was changed"),
    "waiting in a capture": (
        TrtPass, "_enqueue", in_a_capture(lambda p: p._engine.shared.device.wait()), "during a capture",
    ),
    "memory in a capture": (
        TrtPass, "_enqueue", in_a_capture(hoard), "allocated during",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_shows(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    where, name, broken, message = RULES[rule]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(RuleBroken, match=message):
        generate(built, trt)


def test_misaligned_addresses_show(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "ALIGNMENT", 4)
    with pytest.raises(RuleBroken, match="aligned"):
        generate(built, trt)


def test_the_default_stream_shows(built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = CudaDevice.__init__

    def init(self: CudaDevice) -> None:
        honest(self)
        self.stream = 0

    monkeypatch.setattr(CudaDevice, "__init__", init)
    with pytest.raises(RuleBroken, match="default stream"):
        generate(built, trt)


def test_two_threads_in_a_context_show(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaDevice, "ordered", unlocked)
    assert any(isinstance(found, RuleBroken) for found in in_threads(opened(built), trt))


# -- what is refused, and in which words --
def test_a_pass_that_no_profile_holds_is_refused(built: dict[str, Path], trt: FakeTensorRT) -> None:
    gpu = opened(built)
    rows = gpu.manifest.prefill_rows + 1
    with pytest.raises(UsageError, match=rf"no optimisation profile .* token_ids \[1, {rows}\]"):
        gpu.graphs.embed.run({"token_ids": np.zeros((1, rows), np.int64)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: np.zeros((1, 2), np.int64), "not in the memory"),
        (lambda m: m.rows((1, 2)), "is int64 and is bound to float32"),
        (lambda m: m.rows((1, 4), np.int64)[:, ::2], "not contiguous"),
        (lambda m: m.rows((1, 4), np.int64)[:, 2:], "multiple of 256"),
    ],
)
def test_buffers_that_are_none_are_a_bug(
    built: dict[str, Path], trt: FakeTensorRT, spoil: Callable[[Any], Any], message: str
) -> None:
    embed = opened(built).graphs.embed
    out = embed.memory.rows((1, 2, embed.info.outputs[0].shape[2]))
    with pytest.raises(ValueError, match=message):
        embed.bind({"token_ids": spoil(embed.memory), "hidden_out": out})


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("10.16.3", {}, "another TensorRT: 10.16.2, and this machine's is 10.16.3"),
        ("10.16.2", {"major": 9, "minor": 0}, "another compute capability: 87, and this machine's is 90"),
    ],
)
def test_foreign_engines_are_refused_before_they_are_loaded(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch, version: str, gpu: dict[str, int], message: str
) -> None:
    trt = install(monkeypatch, version=version)
    facts = trt.cuda.cudaGetDeviceProperties(0)[1]
    facts.__dict__.update(gpu)
    monkeypatch.setattr(type(trt.cuda), "cudaGetDeviceProperties", lambda self, device: (0, facts))
    with pytest.raises(IntegrityError, match=message):
        opened(built)
    assert trt.deserialised == []


def test_a_changed_engine_is_refused_before_it_is_loaded(
    built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path
) -> None:
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")))
    path = next((bundle / "engines").rglob("segment_1.plan"))
    path.write_bytes(path.read_bytes().replace(b"onnx", b"ONNX", 1))
    with pytest.raises(IntegrityError, match="its SHA-256 is not the record's"):
        Bundle.open(bundle, backend="tensorrt")
    assert "device_segment_1.onnx" not in trt.deserialised


def test_auto_takes_the_engines_where_they_can_run(built: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Bundle.open(built["engines"]).backend == "onnxruntime"  # nothing is installed
    trt = install(monkeypatch)
    assert Bundle.open(built["plain"]).backend == "onnxruntime"
    assert Bundle.open(built["engines"]).backend == "tensorrt"
    trt.cuda.gpus = 0
    assert Bundle.open(built["engines"]).backend == "onnxruntime"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m, t: m.setitem(sys.modules, "tensorrt", None), "needs the Python package tensorrt"),
        (lambda m, t: m.setitem(sys.modules, "cuda.bindings.runtime", None), "cuda-bindings"),
        (lambda m, t: setattr(t.cuda, "gpus", 0), "there is no GPU here"),
        (lambda m, t: setattr(t, "__version__", "10.2.0"), "older than 10.3"),
    ],
)
def test_what_is_missing_is_said(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    spoil(monkeypatch, trt)
    with pytest.raises(MissingBackend, match=message) as caught:
        opened(built)
    assert caught.value.exit_status == 3
    assert caught.value.mend


def test_a_bundle_without_engines_is_refused(built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "bundle", tiny.checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(UsageError, match="no graphs for TensorRT"):
        Bundle.open(bundle, backend="tensorrt")
    with pytest.raises(MissingBackend, match="there are no engines here"):
        opened(built, "plain")
    with pytest.raises(UsageError, match="there is no back end 'gpu'"):
        Bundle.open(built["plain"], backend="gpu")


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaGraphLaunch", "cudaStreamCreateWithFlags"])
def test_a_failing_gpu_is_no_bug(built: dict[str, Path], trt: FakeTensorRT, function: str) -> None:
    trt.cuda.refuse.add(function)
    with pytest.raises(EECompileError, match=f"{function} failed: cudaErrorDouble"):
        generate(built, trt)


def test_the_double_has_nothing_of_its_own() -> None:
    """Every name that the double of CUDA has is the package's, and so is every member of its enumerations."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in [n for n in vars(FakeCuda) if n.startswith("cuda")]:
        assert hasattr(runtime, name), name
        for member in vars(getattr(FakeCuda, name)) if isinstance(vars(FakeCuda)[name], SimpleNamespace) else ():
            assert hasattr(getattr(runtime, name), member), member


def test_the_package_takes_these_arguments(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU each function of CUDA fails, but not before it has looked at what it was given."""
    list(opened(built).generate_many([[3], [4, 5]], slots=2, max_new_tokens=4, stop=()))
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[1]:
        pytest.skip("there is a GPU, and these addresses are not its own")
    enumerated = {"cudaMemcpyAsync": "cudaMemcpyKind", "cudaMemcpy2DAsync": "cudaMemcpyKind",
                  "cudaStreamBeginCapture": "cudaStreamCaptureMode"}  # fmt: skip
    for name, arguments in trt.cuda.arguments.items():
        kind = enumerated.get(name)
        given = [getattr(runtime, kind)(a) if kind and i == _KIND_AT[name] else a for i, a in enumerate(arguments)]
        status = getattr(runtime, name)(*given)[0]
        assert isinstance(status, runtime.cudaError_t), name
    assert "cudaGraphLaunch" in trt.cuda.arguments
