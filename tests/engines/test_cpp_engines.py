"""The C++ runtime's back ends for a GPU, on doubles: the tokens of the CPU, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from compiled import DEPS
from doubled import BOLD, COUNT, PROMPTS, add_engines, device_bundle, on_host
from native_doubles import VERSION, Doubles, compile_program, copying, declarations

from eecompile.engines.plan import read_plan
from eecompile.engines.records import EngineOptions, check_engines, read_record
from eecompile.runtime import Bundle, Sampling

TARGET = "engines/jetson-orin"
MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "confident": {"mode": "confident"},
    "exact": {"mode": "exact", "thresholds": BOLD},
    "exact-2": {"mode": "exact", "thresholds": BOLD, "pending_cap": 2},
}


@pytest.fixture(scope="session")
def gpu(built: dict[str, Path], doubles: Doubles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles with engines that update caches in place, and whose caches are copied."""
    copied = shutil.copytree(built["engines"], tmp_path_factory.mktemp("native-copied") / "copied")
    return {"engines": built["engines"], "copied": copying(copied)}


def words(how: dict[str, Any], prompt: list[int], count: int = COUNT) -> list[object]:
    """The command's options for a request."""
    found: list[object] = ["--prompt-ids", ",".join(map(str, prompt)), "--max-new-tokens", count, "--mode", how["mode"]]
    for layer, bounds in how.get("thresholds", {}).items():
        found += [w for gate, value in bounds.items() for w in ("--threshold", f"{layer}:{gate}={value}")]
    if "pending_cap" in how:
        found += ["--pending-cap", how["pending_cap"]]
    return found


def test_the_drivers_functions_are_the_vendors() -> None:
    done = declarations()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["engines", "copied"])
def test_tokens_are_the_cpus(
    built: dict[str, Path], gpu: dict[str, Path], doubles: Doubles, name: str, mode: str
) -> None:
    how, cpu = MODES[mode], Bundle.open(built["plain"])
    for prompt in PROMPTS:
        found, counted = doubles.tokens(gpu[name], *words(how, prompt))
        assert found == tiny.tokens(cpu, prompt, COUNT, **how)
        assert counted["cuGraphLaunch"] > len(found) // 2
        assert ("cuMemcpyDtoDAsync" in counted) == (name == "copied")


def test_float16_engines_give_what_their_graphs_give(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    bundle = add_engines(device_bundle(tmp_path / "half", built["plain"].parent / "checkpoint", context=96))
    host = on_host(bundle)
    for how in (MODES["full"], MODES["exact"]):
        found, _ = doubles.tokens(bundle, *words(how, PROMPTS[1]))
        assert found == tiny.tokens(host, PROMPTS[1], COUNT, **how)


def test_samples_read_the_logits(built: dict[str, Path], gpu: dict[str, Path], doubles: Doubles) -> None:
    how = Sampling(temperature=0.9, seed=3)
    found, _ = doubles.tokens(gpu["engines"], *words(MODES["full"], PROMPTS[0]), "--temperature", 0.9, "--seed", 3)
    assert found == tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], COUNT, how)


def test_what_cannot_be_captured_is_enqueued(built: dict[str, Path], gpu: dict[str, Path], doubles: Doubles) -> None:
    wanted = tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], COUNT)
    for settings in ({"capture": "no"}, {"refuse": "cuStreamBeginCapture"}):
        found, counted = doubles.tokens(gpu["engines"], *words(MODES["full"], PROMPTS[0]), **settings)
        assert found == wanted
        assert "cuGraphLaunch" not in counted


def test_threads_take_turns_on_the_gpu(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    program = compile_program(tmp_path, doubles.command.with_name("libeecompile.a"), "threads")
    done = doubles.start(program, built["engines"], 4)
    ids = tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], 8, stop=())
    assert [[int(word) for word in line.split()] for line in done.stdout.splitlines()] == [ids * 2] * 4, done.stderr


def test_auto_takes_the_gpu_where_there_is_one(gpu: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    """Its doubles count what they were asked; without a GPU, or without engines, the processor runs the bundle."""
    report, request = tmp_path / "report.json", words(MODES["full"], [3, 4], 4)
    auto = [doubles.command, gpu["engines"], "--json", *request]
    assert doubles.start(*auto, report=report).returncode == 0
    assert json.loads(report.read_text())["deserialised"] > 0
    report.unlink()
    assert doubles.start(*auto, report=report, gpus=0).returncode == 0
    assert not report.exists()


def record(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        path = bundle / TARGET / "record.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def cut(bundle: Path) -> None:
    path = bundle / TARGET / "head.plan"
    path.write_bytes(path.read_bytes()[:-1])


def flipped(bundle: Path) -> None:
    path = bundle / TARGET / "head.plan"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, object], int, str]] = {
    "sm": (lambda bundle: None, {"sm": 90}, 4, "another compute capability: 87, and this machine's is 90"),
    "version": (
        lambda bundle: None, {"version": "10.16.3.1"}, 4, "another TensorRT: 10.16.2, and this machine's is 10.16.3.1"
    ),
    "cuda": (record(lambda d: d.update(cuda="12.6")), {}, 4, "another CUDA: 12.6, and this machine's is 13.2"),
    "newer-cuda": (record(lambda d: d.update(cuda="13.4")), {}, 4, "another CUDA: 13.4, and this machine's is 13.2"),
    "plugin": (record(lambda d: d.update(plugin="0" * 64)), {}, 4, "another plugin library: 000"),
    "bundle": (record(lambda d: d.update(core="0" * 64)), {}, 4, "another bundle: 000"),
    "graph": (record(lambda d: d["engines"]["head"].update(onnx="0" * 64)), {}, 4, "another graph head: 000"),
    "rtx": (record(lambda d: d.update(backend="tensorrt_rtx")), {}, 3, "does not run engines of tensorrt_rtx"),
    "not-built": (record(lambda d: d["engines"].pop("head")), {}, 3, "engines are not built: head"),
    "a-path": (record(lambda d: d["engines"]["head"].update(file="../head.plan")), {}, 4, "is no name of an engine"),
    "unknown": (record(lambda d: d.update(more=1)), {}, 4, "nobody knows: more"),
    "no-record": (lambda bundle: (bundle / TARGET / "record.json").unlink(), {}, 3, "there are no engines here"),
    "no-engine": (lambda bundle: (bundle / TARGET / "head.plan").unlink(), {}, 4, "the engine is missing"),
    "cut-off": (cut, {}, 4, "truncated or changed"),
    "changed": (flipped, {}, 4, "its SHA-256 is not the record's"),
    "no-gpu": (lambda bundle: None, {"gpus": 0}, 3, "there is no GPU here: cuInit failed"),
    "old": (lambda bundle: None, {"version": "10.2.0.1"}, 3, "TensorRT 10.2.0.1 is older than 10.3"),
    "older": (lambda bundle: None, {"version": "10.3.0.1"}, 3, "is older than the headers"),
    "no-memory": (lambda bundle: None, {"refuse": "cuMemAlloc"}, 1, "cuMemAlloc failed: CUDA_ERROR_DOUBLE"),
    "no-launch": (lambda bundle: None, {"refuse": "cuGraphLaunch"}, 1, "cuGraphLaunch failed: CUDA_ERROR_DOUBLE"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_engines_of_another_machine_are_refused(
    built: dict[str, Path], doubles: Doubles, tmp_path: Path, name: str
) -> None:
    damage, settings, status, message = REFUSED[name]
    bundle = Path(shutil.copytree(built["engines"], tmp_path / "bundle"))
    damage(bundle)
    done = doubles.run(bundle, "--prompt-ids", "1,2,3", "--max-new-tokens", 8, **settings)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert message in done.stderr


def test_engines_of_another_device_run_where_it_is(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")), sm=[90])
    assert doubles.run(bundle, "--prompt-ids", 1).returncode == 4
    add_engines(bundle, target="other")
    assert doubles.run(bundle, "--prompt-ids", 1, "--max-new-tokens", 3).returncode == 0


def test_weights_are_put_into_engines_without(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built["plain"], tmp_path / "bundle"))
    add_engines(bundle, options=EngineOptions(compute="float32", stripped=True))
    found, _ = doubles.tokens(bundle, *words(MODES["full"], [3, 4], 6))
    assert found == tiny.tokens(Bundle.open(built["plain"]), [3, 4], 6)


def test_engines_are_built_without_python(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    """They run, in both runtimes' eyes; what is there is kept, a lost one and other options are built again."""
    bundle = Path(shutil.copytree(built["plain"], tmp_path / "bundle"))
    engines = doubles.command.with_name("eecompile-engines")
    first = json.loads(doubles.start(engines, bundle, "--json").stdout)
    plan = read_plan(bundle / "segments" / "device_plan.json")
    assert first["built"] == [graph.name for graph in plan.graphs]
    record = read_record(bundle / TARGET)
    assert record.model_dump(mode="json") == first["record"]
    assert (record.sm, record.tensorrt, record.cuda) == ([87], VERSION, "13.2")
    check_engines(bundle)
    assert (bundle / TARGET / "timing.cache").read_text() == "timed " * len(plan.graphs)
    found, _ = doubles.tokens(bundle, *words(MODES["exact"], PROMPTS[0]))
    assert found == tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], COUNT, **MODES["exact"])
    (bundle / TARGET / "head.plan").unlink()
    assert json.loads(doubles.start(engines, bundle, "--json").stdout)["built"] == ["head"]
    stripped = json.loads(doubles.start(engines, bundle, "--json", "--strip").stdout)
    assert len(stripped["built"]) == len(plan.graphs)
    assert stripped["record"]["options"]["flags"] == ["STRONGLY_TYPED", "REFIT_IDENTICAL", "STRIP_PLAN"]
    assert doubles.tokens(bundle, *words(MODES["full"], [3, 4], 6))[0]


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"sm": 90}, 2, "this machine's GPU, Double, is SM 90"),
        ({"gpus": 0}, 3, "there is no GPU here"),
        ({"version": "10.14.1.1"}, 2, "TensorRT 10.14.1.1 is older than"),
        ({"unparsed": "head"}, 1, "head: the parser refuses it: node n7 (Odd): the double knows no such operator"),
        ({"fail": "head"}, 1, "head: no engine came of it: the double has no kernel for it"),
        ({"kill": "head"}, 1, "was killed by signal 9"),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_why(
    built: dict[str, Path], doubles: Doubles, tmp_path: Path, settings: dict[str, object], status: int, message: str
) -> None:
    """Finished engines are kept."""
    bundle = Path(shutil.copytree(built["plain"], tmp_path / "bundle"))
    engines = doubles.command.with_name("eecompile-engines")
    done = doubles.start(engines, bundle, **settings)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    if status == 1:
        assert read_record(bundle / TARGET).engines.keys() >= {"embed", "segment_0"}
        assert "head" not in read_record(bundle / TARGET).engines


def test_a_plugin_that_is_not_there_is_refused(gpu: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    done = doubles.run(gpu["engines"], "--prompt-ids", 1, "--plugin", tmp_path)
    assert (done.returncode, "there is no plugin library" in done.stderr) == (3, True)


def test_a_bundle_without_engines_has_none_for_tensorrt(shelf: Any, doubles: Doubles) -> None:
    done = doubles.run(shelf.bundle().files.path, "--prompt-ids", 1)
    assert done.returncode == 2
    assert "has no device graphs" in done.stderr


def test_onnx_runtime_has_to_have_the_gpu(gpu: dict[str, Path], doubles: Doubles) -> None:
    """The library of the CPU's package, which has no CUDA provider, is refused before anything runs."""
    done = doubles.start(
        doubles.command, gpu["engines"], "--prompt-ids", 1, "--backend", "cuda",
        "--onnxruntime", DEPS / "lib" / "libonnxruntime.so.1",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "needs CUDAExecutionProvider, and this ONNX Runtime has" in done.stderr
    assert "CPUExecutionProvider" in done.stderr


def test_there_is_no_other_back_end(gpu: dict[str, Path], doubles: Doubles) -> None:
    done = doubles.start(doubles.command, gpu["engines"], "--prompt-ids", 1, "--backend", "metal")
    assert (done.returncode, "there is no back end metal" in done.stderr) == (2, True)
