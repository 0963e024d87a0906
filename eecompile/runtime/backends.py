"""Loading a bundle's graphs into a back end: ONNX Runtime on the CPU, TensorRT, or ONNX Runtime on a GPU."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from eecompile import contract as c
from eecompile.bundle.cycles import read_cycles
from eecompile.bundle.factors import read_factors
from eecompile.bundle.manifest import DeviceGraphs, Manifest
from eecompile.bundle.read import BundleFiles
from eecompile.engines.branches import Branches
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.cuda_memory import CudaMemory
from eecompile.engines.interface import HOST, Engine, Memory
from eecompile.engines.ort import OrtEngine
from eecompile.engines.ort_cuda import load_ort_cuda
from eecompile.engines.plan import BuildPlan
from eecompile.engines.records import (
    RECORD,
    EngineMismatch,
    EngineRecord,
    check,
    checked_engine,
    engines_folder,
    read_record,
)
from eecompile.engines.records import Machine as Here
from eecompile.engines.trt_runtime import TrtRuntime, load_tensorrt
from eecompile.errors import DeviceError, MissingBackend, UsageError
from eecompile.plugins.conditions import Conditions
from eecompile.plugins.library import MEND, find_library, load_library
from eecompile.runtime.device_plan import device_plan
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.schema import GraphInfo

Load: TypeAlias = Callable[[GraphInfo], Engine]


@dataclass(frozen=True)
class _Request:
    """What is to be loaded, and how; hashed, plugin, decision: as of load_graphs."""

    files: BundleFiles
    hashed: bool
    plugin: Path | None
    decision: str = "auto"


def choose_backend(name: str, files: BundleFiles) -> str:
    """The back end that `name` stands for: "auto" is tensorrt where the bundle has engines and this machine a GPU and
    what it takes to run them, else onnxruntime. Raises UsageError for other names than those."""
    if name != "auto":
        if name not in c.BACKENDS:
            raise UsageError(f"there is no back end {name!r}", mend=f"back ends: auto, {', '.join(c.BACKENDS)}")
        return name
    found = [] if files.manifest.device is None else list(_folders(files.path, files.manifest.device))
    if not any((folder / RECORD).is_file() for folder in found):
        return "onnxruntime"
    try:
        CudaDevice()
        load_tensorrt(_record_of_any(found).backend)
    except MissingBackend:
        return "onnxruntime"
    return "tensorrt"


def load_graphs(
    backend: str, files: BundleFiles, *, hashed: bool = True, plugin: Path | None = None, decision: str = "auto"
) -> LoadedGraphs:  # fmt: skip
    """Load a bundle's graphs. A recursive schedule shares its segment's one engine.

    backend: of contract.BACKENDS. hashed: also check engines, which the core does not vouch for, by SHA-256. plugin,
    decision: as of Bundle.open.
    Raises MissingBackend, IntegrityError; UsageError where the bundle has nothing for the back end, or it for a plugin.
    """
    if decision not in c.DECISIONS:
        raise UsageError(f"there is no decision {decision!r}", mend=f"decisions: {', '.join(c.DECISIONS)}")
    if plugin is not None and backend != "tensorrt":
        what = f"engines alone call the exit decision's library, and the back end is {backend}"
        raise UsageError(what, where=str(plugin), mend="leave --plugin out, or name --backend tensorrt")
    graphs = _LOADERS[backend](_Request(files, hashed, plugin, decision))
    if decision == "conditional" and graphs.branches is None:
        raise UsageError(f"nothing decides on a GPU here: {graphs.unbranched}", mend="leave out --decision")
    return graphs


def _on_host(asked: _Request) -> LoadedGraphs:
    root, manifest = asked.files.path, asked.files.manifest

    def load(info: GraphInfo) -> Engine:
        return OrtEngine(root / info.path, info, varied=manifest.task != c.CAUSAL_LM)

    return _loaded(asked, load, HOST)


def _on_cuda(asked: _Request) -> LoadedGraphs:
    manifest = asked.files.manifest
    return _loaded(asked, *load_ort_cuda(asked.files.path, manifest.model.context + manifest.slack))


def _on_tensorrt(asked: _Request) -> LoadedGraphs:
    device = asked.files.manifest.device
    if device is None:
        raise UsageError(
            "the bundle has no graphs for TensorRT", where=str(asked.files.path),
            mend="build it for such a target (`eecompile targets`), or use the back end onnxruntime",
        )  # fmt: skip
    plan, gpu = device_plan(asked.files), CudaDevice()
    folder, record, trt = _engines_for_here(asked, device, plan, gpu)
    shared = TrtRuntime(trt, gpu, plan.length)
    graphs = _loaded(asked, _engine_loader(asked, shared, folder, record, plan), shared.memory)
    branches, why = _branches(asked, shared.memory)
    return replace(graphs, branches=branches, unbranched=why)


def _branches(asked: _Request, memory: CudaMemory) -> tuple[Branches | None, str]:
    """What captures steps that decide on the GPU, or why this machine has it not; raised, where it was asked for."""
    if asked.decision == "pinned":
        return None, "the pinned flag was asked for"
    try:
        library = find_library(asked.plugin)
        if library is None:
            raise MissingBackend("there is no plugin library, which sets conditions of CUDA graphs", mend=MEND)
        return Branches(memory, Conditions(library)), ""
    except (MissingBackend, DeviceError) as e:
        if asked.decision == "conditional":
            raise
        return None, str(e)


def _engines_for_here(
    asked: _Request, device: DeviceGraphs, plan: BuildPlan, gpu: CudaDevice
) -> tuple[Path, EngineRecord, Any]:
    """The engines of the bundle that this machine runs, their record, and the package that runs them, with the plugin
    registered. Raises why the bundle's own target's, or else the first, do not run here, where none does."""
    library, facts = find_library(asked.plugin), gpu.facts()
    onnx = {graph.name: graph.sha256 for graph in plan.graphs}
    faults: list[Exception] = []
    for folder in _folders(asked.files.path, device):
        try:
            record = read_record(folder)
            trt = load_tensorrt(record.backend)
            here = Here(facts.sm, str(trt.__version__), facts.driver, None if library is None else library.sha256)
            check(record, here, asked.files.manifest.digest, onnx, where=folder)
        except (MissingBackend, EngineMismatch) as e:
            faults.append(e)
            continue
        if record.plugin is None and asked.plugin is not None and asked.decision == "pinned":
            what = f"the engines in {folder} call no library of the exit decision"
            raise UsageError(what, where=str(asked.plugin), mend="leave --plugin out")
        if record.plugin is not None and library is not None:
            load_library(trt, library)
        return folder, record, trt
    raise faults[0]


def _engine_loader(asked: _Request, shared: TrtRuntime, folder: Path, record: EngineRecord, plan: BuildPlan) -> Load:
    root, manifest = asked.files.path, asked.files.manifest
    planned, paths = {graph.path: graph for graph in plan.graphs}, _device_paths(manifest)

    def load(info: GraphInfo) -> Engine:
        path = paths[info.path]
        graph = planned[path]
        copied = {c.updated(t.name): t.name for t in info.inputs if c.LENGTH in t.shape and t.name in graph.copied}
        return shared.load(
            checked_engine(folder, record, graph.name, hashed=asked.hashed), info.model_copy(update={"path": path}),
            copied=copied, weights=root / path if record.options.stripped else None,
        )  # fmt: skip

    return load


def _device_paths(manifest: Manifest) -> dict[str, str]:
    """The device's graph in the place of each of the bundle's own, by path; they have the same inputs and outputs, but
    for the length of caches, which only an engine has to know."""
    assert manifest.device is not None
    own = [graph for graph in manifest.graphs.all() if graph is not manifest.graphs.reference]
    return {a.path: b.path for a, b in zip(own, manifest.device.graphs.all(), strict=True)}


def _folders(root: Path, device: DeviceGraphs) -> Iterator[Path]:
    """Where engines may lie: those of the bundle's target, then those of other devices."""
    own = engines_folder(root, device.target)
    yield own
    yield from sorted(folder for folder in own.parent.glob("*") if folder.is_dir() and folder != own)


def _record_of_any(folders: list[Path]) -> EngineRecord:
    return read_record(next(folder for folder in folders if (folder / RECORD).is_file()))


def _loaded(asked: _Request, load: Load, memory: Memory) -> LoadedGraphs:
    root, manifest = asked.files.path, asked.files.manifest
    infos = manifest.graphs
    factors = [{name: memory.constant(a) for name, a in step.items()} for step in read_factors(root, manifest)]
    return LoadedGraphs(
        load(infos.embed), [load(i) for i in infos.segments], [load(i) for i in infos.exits], load(infos.head),
        {head.name: load(info) for head, info in zip(manifest.heads, infos.heads, strict=True)},
        [None if i is None else load(i) for i in infos.kv],
        None if infos.encoder is None else load(infos.encoder),
        factors, read_cycles(root, manifest),
    )  # fmt: skip


_LOADERS: Final[Mapping[str, Callable[[_Request], LoadedGraphs]]] = {
    "onnxruntime": _on_host, "tensorrt": _on_tensorrt, "cuda": _on_cuda,
}  # fmt: skip
