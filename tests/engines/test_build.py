"""Building engines: what the builder is asked for, what is kept, what a kill leaves, what is refused and how."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_tensorrt
import onnx
import pytest
import tiny
from commands import cli, cli_json
from planned import plan_of

from eecompile.bundle.manifest import Manifest
from eecompile.bundle.read import read_bundle
from eecompile.engines import processes
from eecompile.engines.build import EngineRequest, build_engines
from eecompile.engines.builders import builder_for, plan_for_target
from eecompile.engines.child import run_job
from eecompile.engines.jobs import EngineDone, EngineJob
from eecompile.engines.machine import Gpu, read_gpu
from eecompile.engines.network import build_engine
from eecompile.engines.plan import BuildPlan
from eecompile.engines.records import RECORD, Machine, check, checked_engine, engines_folder, read_record
from eecompile.engines.tensorrt import tensorrt_builder
from eecompile.engines.tensorrt_rtx import rtx_builder
from eecompile.errors import EECompileError, MissingBackend, UsageError
from eecompile.plugins.library import PluginLibrary, find_library, load_library
from eecompile.target import load_target

CORE = "c" * 64
ORIN = Gpu("Orin", 87, "12.6")
Source = tuple[Path, Manifest]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny bundle of two slots, whose graphs are of standard operators."""
    root = tmp_path_factory.mktemp("engines")
    path = tiny.bundle_at(root / "bundle", tiny.checkpoint(root / "checkpoint"), [2], slots=2)
    return path, read_bundle(path).manifest


@pytest.fixture
def bundle(source: Source, tmp_path: Path) -> Path:
    """A bundle of one's own; its files are the source's."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "segments").symlink_to(source[0] / "segments")
    return tmp_path / "bundle"


def inside(trt: Any) -> Callable[[EngineJob, Any, int], EngineDone]:
    """Runs jobs in this process, with `trt` in place of the module."""

    def run(job: EngineJob, progress: Callable[[str], None], lock: int) -> EngineDone:
        os.fstat(lock)
        return run_job(job, progress, load=lambda name: trt, register=partial(load_library, dlopen=trt.dlopen))

    return run


def orin(plan: BuildPlan, trt: Any, plugin: PluginLibrary | None = None, gpu: Gpu = ORIN) -> Any:
    return tensorrt_builder(plan, plugin, gpu=lambda: gpu, load=lambda name: trt)


def plugin_at(folder: Path) -> PluginLibrary:
    (folder / "libplugin.so").write_bytes(b"a library")
    library = find_library(folder / "libplugin.so")
    assert library is not None
    return library


def engine(bundle: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((engines_folder(bundle, "jetson-orin") / f"{name}.plan").read_text())
    return document


def test_every_graph_becomes_an_engine_of_the_target(source: Source, bundle: Path) -> None:
    plan, trt, said = plan_of(*source), fake_tensorrt.make(), list[str]()
    done = build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), progress=said.append, run=inside(trt))
    names = [graph.name for graph in plan.graphs]
    assert names == ["embed", "segment_0", "segment_1", "exit_0", "head"] == list(done.built)
    folder = engines_folder(bundle, "jetson-orin")
    assert read_record(folder) == done.record
    assert {p.name for p in folder.iterdir()} == {RECORD, "timing.cache", *(f"{name}.plan" for name in names)}
    check(done.record, Machine(87, "10.16.2", "12.6"), CORE, {g.name: g.sha256 for g in plan.graphs}, where=folder)
    assert all(checked_engine(folder, done.record, name).is_file() for name in names)
    found = done.record.engines["segment_0"]
    assert found.layers["ATTENTION_INPUT"] == 2
    assert found.layers["KV_CACHE_UPDATE"] == 4
    assert found.profiles == ["decode", "prefill"]
    assert engine(bundle, "segment_0")["aux"] == 0
    assert engine(bundle, "segment_0")["profiles"][1]["hidden"] == [[1, 16, 32]] * 3
    assert done.record.options.flags == ["STRONGLY_TYPED"]
    assert "2/5 segment_0: parse" in said
    assert "5/5 head: Building" in said


def test_one_timing_cache_is_shared_and_begun_anew_for_another_version(source: Source, bundle: Path) -> None:
    plan, cache = plan_of(*source), bundle / "shared.cache"
    for version, entries in (("10.16.2", 5), ("10.16.2", 10), ("11.4.1", 5)):
        trt = fake_tensorrt.make(version)
        folder = engines_folder(bundle, "jetson-orin")
        for path in folder.glob("*.plan"):
            path.unlink()
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(timing_cache=cache), run=inside(trt))
        assert cache.read_bytes().startswith(version.encode())
        assert cache.read_bytes().count(b",") == entries - 1
        assert not (folder / "timing.cache").exists()


def test_what_is_there_is_not_built_again(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()

    def built(**changes: Any) -> tuple[str, ...]:
        other = {"core": CORE, "request": EngineRequest(), "trt": trt, "plan": plan, **changes}
        builder = orin(other["plan"], other["trt"])
        done = build_engines(bundle, other["core"], other["plan"], builder, other["request"], run=inside(other["trt"]))
        return done.built

    everything = tuple(graph.name for graph in plan.graphs)
    folder = engines_folder(bundle, "jetson-orin")
    assert built() == everything
    assert built() == ()
    (folder / "head.plan").write_bytes(b"damaged")
    (folder / "embed.plan").unlink()
    assert built() == ("embed", "head")
    graphs = [g.model_copy(update={"sha256": "9" * 64}) if g.name == "exit_0" else g for g in plan.graphs]
    assert built(plan=plan.model_copy(update={"graphs": graphs})) == ("exit_0",)
    (folder / RECORD).write_text("{")
    assert built() == everything
    assert built(core="d" * 64) == everything
    assert built(core="d" * 64, request=EngineRequest(stripped=True)) == everything
    assert built(core="d" * 64, request=EngineRequest(stripped=True), trt=fake_tensorrt.make("11.4.1")) == everything
    (folder / ".head.plan.tmp-1-00").write_bytes(b"left by a killed build")
    (folder / "segment_7.plan").write_bytes(b"of another cut")
    assert built(core="d" * 64, request=EngineRequest(stripped=True), trt=fake_tensorrt.make("11.4.1")) == ()
    assert {p.name for p in folder.iterdir()} == {RECORD, "timing.cache", *(f"{name}.plan" for name in everything)}


def test_a_fault_keeps_what_was_finished(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()
    run = inside(trt)

    def until_the_exit(job: EngineJob, progress: Any, lock: int) -> EngineDone:
        if job.graph == "exit_0":
            raise EECompileError("killed", where=job.graph)
        return run(job, progress, lock)

    with pytest.raises(EECompileError, match="exit_0: killed"):
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=until_the_exit)
    assert list(read_record(engines_folder(bundle, "jetson-orin")).engines) == ["embed", "segment_0", "segment_1"]
    assert build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=run).built == ("exit_0", "head")


def test_stripped_plans_have_no_weights_and_refittable_ones_may_get_others(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()
    kinds = {
        EngineRequest(stripped=True): ["REFIT_IDENTICAL", "STRIP_PLAN"],
        EngineRequest(refit=True): ["REFIT"],
        EngineRequest(stripped=True, refit=True): ["REFIT", "STRIP_PLAN"],
    }
    for request, flags in kinds.items():
        record = build_engines(bundle, CORE, plan, orin(plan, trt), request, run=inside(trt)).record
        assert (record.options.stripped, record.options.refit) == (request.stripped, request.refit)
        assert record.options.flags == ["STRONGLY_TYPED", *flags]
        assert engine(bundle, "segment_0")["flags"] == flags
        assert (engine(bundle, "segment_0")["weights"] == 0) == request.stripped


def test_the_decision_becomes_the_plugin_where_there_is_one(source: Source, bundle: Path, tmp_path: Path) -> None:
    plan, library = plan_of(*source), plugin_at(tmp_path)
    trt = fake_tensorrt.make(libraries=(str(library.path),))
    record = build_engines(bundle, CORE, plan, orin(plan, trt, library), EngineRequest(), run=inside(trt)).record
    assert record.engines["head"].layers["PLUGIN_V3"] == 1
    assert record.plugin == library.sha256
    assert engine(bundle, "head")["plugins"] == [str(library.path)]
    assert engine(bundle, "embed")["plugins"] == []


def test_a_parser_that_prefers_the_function_is_found_out(source: Source, bundle: Path, tmp_path: Path) -> None:
    library = plugin_at(tmp_path)
    plan, trt = plan_of(*source), fake_tensorrt.make(libraries=(str(library.path),), prefers_function=True)
    with pytest.raises(EECompileError, match=r"head: .*no PLUGIN_V3 layer"):
        build_engines(bundle, CORE, plan, orin(plan, trt, library), EngineRequest(), run=inside(trt))


def test_the_parser_s_errors_name_graph_and_node(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make("10.3.0")
    plan = plan.model_copy(update={"graphs": plan.graphs[1:]})
    with pytest.raises(EECompileError, match=r"segment_0: the parser refuses it: node .*No importer.* more\)"):
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=inside(trt))


def test_the_builder_s_own_words_are_passed_on(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()
    embed = plan.graphs[0]
    bare = embed.profiles[0].model_copy(update={"shapes": {}})
    plan = plan.model_copy(update={"graphs": [embed.model_copy(update={"profiles": [bare]})]})
    with pytest.raises(EECompileError, match="embed: no engine came of it: token_ids: dynamic input is missing"):
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=inside(trt))
    odd = embed.profiles[0].model_copy(update={"shapes": {"no_input": embed.profiles[0].shapes["token_ids"]}})
    plan = plan.model_copy(update={"graphs": [embed.model_copy(update={"profiles": [odd]})]})
    with pytest.raises(EECompileError, match="names no_input"):
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=inside(trt))


def test_one_build_at_a_time(source: Source, bundle: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()

    def again(job: EngineJob, progress: Any, lock: int) -> EngineDone:
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=inside(trt))
        raise AssertionError("two builds at once")

    with pytest.raises(UsageError, match="another process builds"):
        build_engines(bundle, CORE, plan, orin(plan, trt), EngineRequest(), run=again)


def test_an_engine_for_several_gpus_names_them(source: Source, bundle: Path) -> None:
    rtx = load_target("rtx")
    plan = plan_for_target(plan_of(*source), rtx)
    trt = fake_tensorrt.make("1.7.1.116", rtx=True, gpu=False)
    builder = rtx_builder(plan, load=lambda name: trt)
    record = build_engines(bundle, CORE, plan, builder, EngineRequest(), run=inside(trt)).record
    assert (record.sm, record.cuda, record.plugin) == ([80, 86, 89, 120], None, None)
    folder = engines_folder(bundle, "rtx")
    assert json.loads((folder / "head.plan").read_text())["sms"] == ["SM80", "SM86", "SM89", "SM120"]
    assert "PLUGIN_V3" not in record.engines["head"].layers
    assert not (folder / "timing.cache").exists()
    with pytest.raises(UsageError, match="neither stripped nor refittable"):
        build_engines(bundle, CORE, plan, builder, EngineRequest(stripped=True), run=inside(trt))
    hopper = plan.model_copy(update={"sm": [90]})
    builder = rtx_builder(hopper, load=lambda name: trt)
    with pytest.raises(MissingBackend, match="builds no engines for SM90"):
        build_engines(bundle, CORE, hopper, builder, EngineRequest(), run=inside(trt))


def test_another_machine_is_told_what_to_do(source: Source, tmp_path: Path) -> None:
    plan, trt = plan_of(*source), fake_tensorrt.make()
    with pytest.raises(UsageError, match=r"H100, is SM 90, and jetson-orin is SM 87"):
        orin(plan, trt, gpu=Gpu("H100", 90, "13.0"))
    with pytest.raises(UsageError, match=r"CUDA 12\.4 is older than 12\.6"):
        orin(plan, trt, gpu=Gpu("Orin", 87, "12.4"))
    with pytest.raises(UsageError, match=r"TensorRT 9\.3\.0 is older than 10\.3"):
        orin(plan, fake_tensorrt.make("9.3.0"))
    with pytest.raises(UsageError, match=r"TensorRT 12\.0\.0 is not older than 12\.0"):
        orin(plan, fake_tensorrt.make("12.0.0"))
    with pytest.raises(MissingBackend, match="make plugin") as refused:
        orin(plan.model_copy(update={"plugin": "required"}), trt)
    assert refused.value.exit_status == 3


def test_graphs_serve_other_targets_of_their_dialect(source: Source) -> None:
    plan = plan_of(*source)
    assert plan_for_target(plan, load_target("jetson-orin")) is plan
    thor = plan_for_target(plan, load_target("jetson-thor"))
    assert (thor.target, thor.sm, thor.graphs) == ("jetson-thor", load_target("jetson-thor").sm, plan.graphs)
    assert plan_for_target(plan, load_target("rtx")).plugin == "never"
    for name in ("cpu", "jetson-orin-jp6"):
        with pytest.raises(UsageError, match=name):
            plan_for_target(plan, load_target(name))
    with pytest.raises(UsageError, match="need a plugin"):
        plan_for_target(plan.model_copy(update={"plugin": "required"}), load_target("rtx"))


def test_without_a_gpu_or_the_package_the_status_is_three(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(MissingBackend, match="no NVIDIA GPU here") as refused:
        read_gpu(no_driver)
    assert refused.value.exit_status == 3
    assert "copy the bundle to the device" in str(refused.value)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingBackend, match="tensorrt_rtx cannot be imported") as refused:
        builder_for(plan_for_target(plan_of(*source), load_target("rtx")))
    assert "pip install" in str(refused.value)
    trt, job = fake_tensorrt.make(gpu=False), _job(source, "embed")
    with pytest.raises(MissingBackend, match="CUDA initialization failure"):
        build_engine(trt, job)


class Driver:
    """A CUDA driver's library with one GPU."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            values = {"cuDriverGetVersion": 13020}
            if name == "cuDeviceGetAttribute":
                values[name] = {75: 8, 76: 7}[arguments[1]]
            if name in values:
                arguments[0]._obj.value = values[name]
            if name == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            return self.status

        return call


def test_the_driver_says_which_gpu_is_here() -> None:
    assert read_gpu(lambda name: Driver()) == Gpu("Orin", 87, "13.2")
    with pytest.raises(MissingBackend, match="cuInit returned 100"):
        read_gpu(lambda name: Driver(100))


def _job(source: Source, name: str) -> EngineJob:
    graph = plan_of(*source).graph(name)
    out = source[0].parent / f"{name}.plan"
    return EngineJob(
        module="tensorrt", graph=name, onnx=str(source[0] / graph.path), out=str(out), profiles=graph.profiles
    )


MODULE = "import fake_tensorrt, sys\nsys.modules[__name__] = fake_tensorrt.make()\n"


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a text the module `tensorrt` of processes that are started."""

    def place(text: str) -> None:
        (tmp_path / "tensorrt.py").write_text(text)

    path = [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return place


def test_a_process_builds_and_answers(source: Source, importable: Callable[[str], None], tmp_path: Path) -> None:
    importable(MODULE + "print('what a library prints')\n")
    said: list[str] = []
    job = _job(source, "embed")
    with open(os.devnull) as lock:
        done = processes.run_in_process(job, said.append, lock.fileno())
    assert said == ["parse", "build", "Building"]
    assert done.bytes == Path(job.out).stat().st_size
    assert done.version == "10.16.2"
    assert done.peak > 1 << 20


def test_an_interrupt_leaves_neither_a_process_nor_half_a_file(
    source: Source, bundle: Path, importable: Callable[[str], None]
) -> None:
    importable(MODULE + WAIT_IN_THE_SECOND)
    plan = plan_of(*source)
    folder = engines_folder(bundle, "jetson-orin")

    def interrupt(stage: str) -> None:
        if stage == "2/5 segment_0: Building":
            while not list(folder.glob(".segment_0.plan.tmp-*")):
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, CORE, plan, orin(plan, fake_tensorrt.make()), EngineRequest(), progress=interrupt)
    assert list(read_record(folder).engines) == ["embed"]
    assert {p.name for p in folder.iterdir()} == {RECORD, "embed.plan", "timing.cache"}


WAIT_IN_THE_SECOND = """
import os, time
from pathlib import Path

replace = os.replace
def wait(source, target):
    if Path(target).name == "segment_0.plan":
        time.sleep(600)
    replace(source, target)
os.replace = wait
"""


@pytest.mark.parametrize(
    ("module", "kind", "said"),
    [
        ("raise OSError('libnvinfer.so.10 is missing')", MissingBackend, "libnvinfer"),
        ("import os; os.abort()", EECompileError, "killed by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", EECompileError, "run out of memory"),
        ("import sys; sys.stderr.write('bad news'); sys.exit(7)", EECompileError, "status 7; it said: .*bad news"),
    ],
)
def test_whatever_ends_a_process_is_said(
    source: Source, importable: Callable[[str], None], module: str, kind: type[EECompileError], said: str
) -> None:
    importable(module)
    with open(os.devnull) as lock, pytest.raises(kind, match=f"(?s){said}"):
        processes.run_in_process(_job(source, "embed"), lambda stage: None, lock.fileno())


def test_the_command_finishes_a_bundle_on_its_device(
    tmp_path: Path, importable: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From checkpoint to engines, on a machine whose GPU and TensorRT are doubles; a build there makes them at once."""
    builder = partial(tensorrt_builder, gpu=lambda: Gpu("Orin", 87, "13.2"), load=lambda name: fake_tensorrt.make())
    source, options = tiny.checkpoint(tmp_path / "checkpoint"), ("--exits", "2", "--context", "64")
    built = ["embed", "segment_0", "segment_1", "exit_0", "head"]
    cli("build", source, "--target", "jetson-orin", *options, "-o", tmp_path / "foreign")
    importable(MODULE)
    monkeypatch.setattr("eecompile.engines.builders.tensorrt_builder", builder)
    said = cli_json("engines", tmp_path / "foreign", "--strip", "--timing-cache", tmp_path / "cache")
    assert said["built"] == built
    assert said["record"]["options"]["flags"] == ["STRONGLY_TYPED", "REFIT_IDENTICAL", "STRIP_PLAN"]
    assert said["record"]["options"]["stripped"]
    assert (tmp_path / "cache").is_file()
    assert "0 built, 5 kept" in cli("engines", tmp_path / "foreign", "--strip").stdout
    assert "attention 2, cache update 4" in cli("inspect", tmp_path / "foreign").stdout
    here = cli_json("build", source, "--target", "jetson-orin", *options, "-o", tmp_path / "here")
    assert here["engines"] == built


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
from planned import plan_of
from eecompile.bundle.read import read_bundle
from eecompile.engines.build import EngineRequest, build_engines
from eecompile.engines.machine import Builder
root = Path({root!r})
manifest = read_bundle(root, integrity="size").manifest
builder = Builder("tensorrt", (87,), "10.16.2", "12.6")
build_engines(Path({out!r}), "c" * 64, plan_of(root, manifest), builder, EngineRequest())
"""


def test_a_build_that_was_killed_goes_on(source: Source, bundle: Path, importable: Callable[[str], None]) -> None:
    """Both processes are killed in the middle of the third engine, a temporary of it on the disk."""
    importable(MODULE + KILL_IN_THE_THIRD)
    here = Path(__file__).parent
    program = KILLED.format(here=str(here), tests=str(here.parent), root=str(source[0]), out=str(bundle))
    first = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    folder = engines_folder(bundle, "jetson-orin")
    assert list(read_record(folder).engines) == ["embed", "segment_0"]
    assert list(folder.glob(".segment_1.plan.tmp-*"))
    importable(MODULE)
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    record = read_record(folder)
    assert list(record.engines) == ["embed", "segment_0", "segment_1", "exit_0", "head"]
    assert not list(folder.glob(".*"))


KILL_IN_THE_THIRD = """
import os, signal
from pathlib import Path
import eecompile.engines.files as files

replace = os.replace
def kill(source, target):
    if Path(target).name == "segment_1.plan":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill
"""


def test_the_double_refuses_what_tensorrt_does(source: Source) -> None:
    """So that the tests above can fail."""
    trt = fake_tensorrt.make()
    builder = trt.Builder(type("Log", (trt.ILogger,), {"log": lambda *a: None})())
    with pytest.raises(AssertionError, match="strongly typed"):
        builder.create_network(0)
    with pytest.raises(AssertionError, match="no builder flag"):
        builder.create_builder_config().set_flag(1)
    with pytest.raises(AttributeError):
        _ = trt.ComputeCapability
    assert onnx.load(source[0] / "segments" / "head.onnx", load_external_data=False).functions
