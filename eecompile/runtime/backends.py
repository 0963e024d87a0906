"""Loading a bundle's graphs into a back end: ONNX Runtime on the CPU, TensorRT, or ONNX Runtime on a GPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from eecompile import contract as c
from eecompile.bundle.cycles import read_cycles
from eecompile.bundle.factors import read_factors
from eecompile.bundle.manifest import Graphs, Manifest
from eecompile.engines.cuda import CudaDevice
from eecompile.engines.interface import HOST, Engine, Memory
from eecompile.engines.ort import OrtEngine
from eecompile.engines.ort_cuda import load_ort_cuda
from eecompile.engines.plan import BuildPlan, read_plan
from eecompile.engines.records import (
    RECORD,
    EngineRecord,
    Machine,
    check,
    checked_engine,
    engines_folder,
    read_record,
)
from eecompile.engines.trt_runtime import TrtRuntime, load_tensorrt
from eecompile.errors import MissingBackend, UsageError
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.schema import GraphInfo

Load: TypeAlias = Callable[[GraphInfo], Engine]


def choose_backend(name: str, root: Path, manifest: Manifest) -> str:
    """The back end that `name` stands for: "auto" is tensorrt where the bundle has engines and this machine a GPU and
    what it takes to run them, else onnxruntime. Raises UsageError for other names than those."""
    if name != "auto":
        if name not in c.BACKENDS:
            raise UsageError(f"there is no back end {name!r}", mend=f"back ends: auto, {', '.join(c.BACKENDS)}")
        return name
    device = manifest.device
    if device is None or not (engines_folder(root, device.target) / RECORD).is_file():
        return "onnxruntime"
    try:
        load_tensorrt(read_record(engines_folder(root, device.target)).backend)
        CudaDevice()
    except MissingBackend:
        return "onnxruntime"
    return "tensorrt"


def load_graphs(backend: str, root: Path, manifest: Manifest, *, hashed: bool = True) -> LoadedGraphs:
    """Load a bundle's graphs. A recursive schedule shares its segment's one engine.

    backend: of contract.BACKENDS. hashed: also check what the core does not vouch for, engines, by SHA-256.
    Raises MissingBackend, IntegrityError; UsageError where the bundle has nothing for the back end.
    """
    return _LOADERS[backend](root, manifest, hashed)


def _on_host(root: Path, manifest: Manifest, hashed: bool) -> LoadedGraphs:
    varied = manifest.task != c.CAUSAL_LM

    def load(info: GraphInfo) -> Engine:
        return OrtEngine(root / info.path, info, varied=varied)

    return _loaded(root, manifest, manifest.graphs, load, HOST)


def _on_cuda(root: Path, manifest: Manifest, hashed: bool) -> LoadedGraphs:
    length = -(-(manifest.model.context + manifest.slack) // c.CACHE_BUCKET) * c.CACHE_BUCKET
    load, memory = load_ort_cuda(root, length)
    return _loaded(root, manifest, manifest.graphs, load, memory)


def _on_tensorrt(root: Path, manifest: Manifest, hashed: bool) -> LoadedGraphs:
    device = manifest.device
    if device is None:
        raise UsageError(
            "the bundle has no graphs for TensorRT", where=str(root),
            mend="build it for such a target (`eecompile targets`), or use the back end onnxruntime",
        )  # fmt: skip
    plan, folder = read_plan(root / device.plan), engines_folder(root, device.target)
    record = read_record(folder)
    trt, gpu = load_tensorrt(record.backend), CudaDevice()
    check(record, _machine(trt, gpu), manifest.digest, {g.name: g.sha256 for g in plan.graphs}, where=folder)
    shared = TrtRuntime(trt, gpu, plan.length)
    load = _engine_loader(shared, folder, record, plan, hashed)
    return _loaded(root, manifest, device.graphs, load, shared.memory)


def _engine_loader(shared: TrtRuntime, folder: Path, record: EngineRecord, plan: BuildPlan, hashed: bool) -> Load:
    planned = {graph.path: graph for graph in plan.graphs}

    def load(info: GraphInfo) -> Engine:
        graph = planned[info.path]
        return shared.load(checked_engine(folder, record, graph.name, hashed=hashed), info, graph.copied)

    return load


def _machine(trt: object, gpu: CudaDevice) -> Machine:
    facts = gpu.facts()
    return Machine(facts.sm, str(getattr(trt, "__version__", "")), facts.driver)


def _loaded(root: Path, manifest: Manifest, infos: Graphs, load: Load, memory: Memory) -> LoadedGraphs:
    factors = [{name: memory.constant(a) for name, a in step.items()} for step in read_factors(root, manifest)]
    return LoadedGraphs(
        load(infos.embed), [load(i) for i in infos.segments], [load(i) for i in infos.exits], load(infos.head),
        {head.name: load(info) for head, info in zip(manifest.heads, infos.heads, strict=True)},
        [None if i is None else load(i) for i in infos.kv],
        None if infos.encoder is None else load(infos.encoder),
        factors, read_cycles(root, manifest),
    )  # fmt: skip


_LOADERS: Final[Mapping[str, Callable[[Path, Manifest, bool], LoadedGraphs]]] = {
    "onnxruntime": _on_host, "tensorrt": _on_tensorrt, "cuda": _on_cuda,
}  # fmt: skip
