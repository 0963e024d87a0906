"""The processes that build engines: their answers, what ends them, interrupts and kills; the command over all of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fake_tensorrt
import pytest
import tiny
from commands import cli, cli_json
from planned import CORE, Source, job_of, orin, plan_of

from eecompile.engines import processes
from eecompile.engines.build import EngineRequest, build_engines
from eecompile.engines.machine import Gpu
from eecompile.engines.records import RECORD, engines_folder, read_record
from eecompile.engines.tensorrt import tensorrt_builder
from eecompile.errors import EECompileError, MissingBackend

MODULE = "import fake_tensorrt, sys\nsys.modules[__name__] = fake_tensorrt.make()\n"


def test_a_process_builds_and_answers(source: Source, importable: Callable[[str], None], tmp_path: Path) -> None:
    importable(MODULE + "print('what a library prints')\n")
    said: list[str] = []
    job = job_of(source, "embed")
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
        processes.run_in_process(job_of(source, "embed"), lambda stage: None, lock.fileno())


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
    """It is killed in the middle of the third engine, a temporary of it on the disk; the process that writes that ends
    with it, or the next build would have to wait."""
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
import os, signal, time
from pathlib import Path

replace = os.replace
def kill(source, target):
    if Path(target).name == "segment_1.plan":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    replace(source, target)
os.replace = kill
"""
