"""The back end tensorrt on doubles: the tokens of the CPU in every mode, on every kind of engine."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import cli_json
from doubled import (
    BOLD,
    COUNT,
    EXACT,
    MODES,
    PROMPTS,
    add_engines,
    device_bundle,
    in_threads,
    install,
    on_host,
    opened,
    runtime_of,
)
from trt_double import FakeTensorRT

from eecompile.bench import profile
from eecompile.engines.records import EngineOptions
from eecompile.errors import IntegrityError
from eecompile.runtime import Bundle, Sampling
from eecompile.verify.captured import check_captured


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
    verified = cli_json("verify", built["engines"], "--backend", "tensorrt", "--tokens", "4")
    assert verified["passed"]
    assert {check["name"]: check["figures"] for check in verified["checks"]}["captured"] == {"uncaptured": 0}
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


def test_what_cannot_be_captured_is_enqueued(built: dict[str, Path], trt: FakeTensorRT) -> None:
    trt.capturable = False
    gpu = opened(built)
    assert tiny.tokens(gpu, PROMPTS[0], COUNT, stop=()) == tiny.tokens(
        Bundle.open(built["plain"]), PROMPTS[0], COUNT, stop=()
    )
    assert "cudaGraphLaunch" not in trt.cuda.calls
    assert "segments/device_head.onnx" in runtime_of(gpu).uncaptured
    (check,) = check_captured(gpu)
    assert check.figures["uncaptured"] == len(runtime_of(gpu).uncaptured)
    assert "enqueued one by one: " in check.detail
    assert "segments/device_head.onnx: " in check.detail
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
