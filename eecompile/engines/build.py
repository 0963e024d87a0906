"""Every engine of a build plan, one process after another, so that a kill at any time leaves what was finished.

An engine and the record that names it are each written to a temporary and renamed. What the record has, of this
machine, these options and these files, is not built again.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eecompile.engines.files import remove_temporaries
from eecompile.engines.jobs import EngineDone, EngineJob
from eecompile.engines.machine import Builder
from eecompile.engines.network import builder_flags
from eecompile.engines.plan import BuildPlan, GraphPlan
from eecompile.engines.processes import run_in_process
from eecompile.engines.records import (
    EngineFile,
    EngineOptions,
    EngineRecord,
    checked_engine,
    engines_folder,
    read_record,
    write_record,
)
from eecompile.errors import IntegrityError, MissingBackend, UsageError

Progress = Callable[[str], None]
Run = Callable[[EngineJob, Progress, int], EngineDone]
TIMING_CACHE = "timing.cache"
CARRIED = "AOT_PLUGIN"  # among the flags of a record: engines have the exit decision's kernel in them


@dataclass(frozen=True)
class EngineRequest:
    """stripped: plans without weights. refit: weights may be replaced by others. timing_cache: a file that builds
    share; None: one beside the engines. aot: the exit decision's kernel goes into the engines that have one, which then
    need no plugin library."""

    stripped: bool = False
    refit: bool = False
    timing_cache: Path | None = None
    aot: bool = False


@dataclass(frozen=True)
class EnginesBuilt:
    """The finished record, and which engines were built now; the others were there."""

    record: EngineRecord
    built: tuple[str, ...]


def build_engines(
    bundle: Path, core: str, plan: BuildPlan, builder: Builder, request: EngineRequest, *,
    progress: Progress = lambda stage: None, run: Run = run_in_process,
) -> EnginesBuilt:  # fmt: skip
    """Build what is missing of the plan's engines into BUNDLE/engines/<target>/.

    core: the digest of the bundle's manifest. Memory: that of the largest graph's build, in a process of its own.
    Raises EECompileError naming the graph; engines finished before it stay, and the next call goes on after them.
    """
    if (request.stripped or request.refit) and not builder.strips:
        raise UsageError(f"{builder.module} makes neither stripped nor refittable plans", mend="leave the option out")
    folder = engines_folder(bundle, plan.target)
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    with _locked(folder) as lock:
        record = _kept(folder, _heading(core, plan, builder, request), plan)
        write_record(folder, record)
        for number, graph in enumerate(plan.graphs, 1):
            if graph.name in record.engines:
                continue
            place = f"{number}/{len(plan.graphs)} {graph.name}"
            job = _job(bundle, folder, plan, graph, builder, request)
            done = run(job, lambda stage, place=place: progress(f"{place}: {stage}"), lock)  # type: ignore[misc]
            record = record.model_copy(update={"engines": {**record.engines, graph.name: _file(job, graph, done)}})
            write_record(folder, record)
            built.append(graph.name)
        _remove_others(folder, record)
    return EnginesBuilt(record, tuple(built))


def _heading(core: str, plan: BuildPlan, builder: Builder, request: EngineRequest) -> EngineRecord:
    """A record without engines: what all of them are to have in common."""
    flags = ["STRONGLY_TYPED", *builder_flags(request.stripped, request.refit)]
    decides = any(graph.plugin for graph in plan.graphs)
    if decides and request.aot:
        flags.append(CARRIED)
    options = EngineOptions(compute=plan.compute, stripped=request.stripped, refit=request.refit, flags=flags)
    plugin = builder.plugin if decides and not request.aot else None
    return EngineRecord(
        core=core, target=plan.target, backend=builder.module, sm=list(builder.sm), tensorrt=builder.version,
        cuda=builder.cuda, plugin=None if plugin is None else plugin.sha256, built_on=builder.device,
        options=options,
    )  # fmt: skip


def _kept(folder: Path, heading: EngineRecord, plan: BuildPlan) -> EngineRecord:
    """`heading` with those engines of the record in `folder` that are what would be built again."""
    try:
        old = read_record(folder)
    except (IntegrityError, MissingBackend):
        return heading
    if old.model_copy(update={"engines": {}}) != heading:
        return heading
    kept = {graph.name: old.engines[graph.name] for graph in plan.graphs if _is_same(folder, old, graph)}
    return heading.model_copy(update={"engines": kept})


def _is_same(folder: Path, old: EngineRecord, graph: GraphPlan) -> bool:
    info = old.engines.get(graph.name)
    if info is None or info.onnx != graph.sha256 or info.profiles != [p.name for p in graph.profiles]:
        return False
    try:
        checked_engine(folder, old, graph.name)
    except IntegrityError:
        return False
    return True


def _job(
    bundle: Path, folder: Path, plan: BuildPlan, graph: GraphPlan, builder: Builder, request: EngineRequest
) -> EngineJob:
    own = folder / TIMING_CACHE if builder.times else None
    cache = request.timing_cache or own
    plugin = builder.plugin if graph.plugin and not request.aot else None
    return EngineJob(
        module=builder.module, graph=graph.name, onnx=str(bundle / graph.path), out=str(folder / f"{graph.name}.plan"),
        profiles=graph.profiles, sm=list(builder.sm) if builder.several else [],
        plugin=None if plugin is None else str(plugin.path), decides=graph.plugin, aot=request.aot and graph.plugin,
        stripped=request.stripped, refit=request.refit, timing_cache=None if cache is None else str(cache),
    )  # fmt: skip


def _file(job: EngineJob, graph: GraphPlan, done: EngineDone) -> EngineFile:
    return EngineFile(
        file=Path(job.out).name, onnx=graph.sha256, bytes=done.bytes, sha256=done.sha256,
        profiles=[p.name for p in graph.profiles], layers=done.layers, seconds=round(done.seconds, 3), peak=done.peak,
    )  # fmt: skip


def _remove_others(folder: Path, record: EngineRecord) -> None:
    """Engines of an earlier build that this one has no use for."""
    files = {info.file for info in record.engines.values()}
    for path in folder.glob("*.plan"):
        if path.name not in files:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One build at a time. Building processes inherit the lock, so that it is held until the last of them has ended."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_temporaries(folder)
        try:
            yield lock
        finally:
            remove_temporaries(folder)
    except BlockingIOError as e:
        raise UsageError("another process builds engines here", where=str(folder), mend="wait for it to end") from e
    finally:
        os.close(lock)
