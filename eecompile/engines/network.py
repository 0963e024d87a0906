"""From an ONNX file to a serialised engine, through what TensorRT 10.3 to 11 and TensorRT-RTX have in common.

Networks are strongly typed: the graph says every type, and the builder keeps to it. No enumerator is kept as a number,
since numbers change between versions. Only a building process calls this (child.py): a parser that aborts, or a build
that the system kills for memory, then ends nothing else.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from eecompile.engines.files import write_whole
from eecompile.engines.jobs import EngineDone, EngineJob
from eecompile.engines.machine import ON_DEVICE
from eecompile.engines.plan import ProfileShapes
from eecompile.engines.resident import peak_bytes
from eecompile.errors import EECompileError, MissingBackend
from eecompile.plugins.exit_decision.aot import ask_for_aot

Progress = Callable[[str], None]
PLUGIN_LAYER, ATTENTION_LAYER = "PLUGIN_V3", "ATTENTION_INPUT"
_NO_DRIVER = "CUDA driver version is insufficient"  # TensorRT-RTX says so of every fault where there is no GPU
_SHOWN = 4  # of a parser's errors, and of the log's


def build_engine(trt: Any, job: EngineJob, progress: Progress = lambda stage: None) -> EngineDone:
    """Parse, build and write the engine of `job`; `trt` is the module, the plugin library already registered.

    Raises EECompileError naming graph and node, MissingBackend where this machine cannot build at all.
    """
    begun = time.monotonic()
    log = _logger(trt)
    builder = _builder(trt, log, job)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # keeps the weights: it has to outlive the build
    progress("parse")
    if not _parse(parser, job):
        raise EECompileError(f"the parser refuses it: {_parser_errors(parser)}", where=job.graph)
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    _check_decision(job, layers)
    _let_attention_decompose(trt, network, job)
    config = _config(trt, builder, network, job)
    config.progress_monitor = monitor = _monitor(trt, progress)
    cache = _timing_cache(config, job)
    progress("build")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EECompileError(f"no engine came of it: {log.said()}", where=job.graph)
    sha256 = write_whole(Path(job.out), [memoryview(serialized)])
    if cache is not None and job.timing_cache is not None:
        write_whole(Path(job.timing_cache), [memoryview(cache.serialize())])
    del monitor
    return EngineDone(
        version=str(trt.__version__), bytes=Path(job.out).stat().st_size, sha256=sha256, layers=dict(layers),
        peak=peak_bytes(), seconds=time.monotonic() - begun,
    )  # fmt: skip


def _builder(trt: Any, log: Any, job: EngineJob) -> Any:
    try:
        return trt.Builder(log)
    except Exception as e:  # without a GPU or a driver, a TypeError of the bindings
        what = f"{job.module} cannot build on this machine: {log.said()} ({e})"
        raise MissingBackend(what, where=job.graph, mend=ON_DEVICE) from e


def _parse(parser: Any, job: EngineJob) -> bool:
    """Parse the job's graph; its weights lie beside it, wherever its bytes come from."""
    if not job.aot:
        return bool(parser.parse_from_file(job.onnx))
    model = onnx.load(job.onnx, load_external_data=False)
    ask_for_aot(model)
    return bool(parser.parse(model.SerializeToString(), job.onnx))


def _check_decision(job: EngineJob, layers: Counter[str]) -> None:
    """The parser takes the node's ONNX function, silently, where it does not find the plugin."""
    if job.decides and (job.plugin is not None or job.aot) and not layers[PLUGIN_LAYER]:
        library = "a plugin library for this TensorRT: `make plugin` on this machine"
        raise EECompileError(
            f"the exit decision did not become the plugin: there is no {PLUGIN_LAYER} layer", where=job.graph,
            mend=f"leave --aot out, or use {library}" if job.aot else library,
        )  # fmt: skip


def _let_attention_decompose(trt: Any, network: Any, job: EngineJob) -> None:
    """Where no fused kernel has an attention's form (one key head, heads of 8 numbers, float32), several may do it.

    Only versions that have attention layers know this; by default they build nothing then. In float32 TensorRT-RTX
    crashes over it (1.7.1), and is left to say that it has no kernel.
    """
    kind = getattr(trt, "IAttentionInputLayer", None)
    if not hasattr(kind, "attention"):
        return
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type.name == ATTENTION_LAYER:
            layer.__class__ = kind  # the bindings give every layer as its base
            wide = layer.attention.get_input(0).dtype == trt.float32
            layer.attention.decomposable = not (wide and job.module == "tensorrt_rtx")


def _config(trt: Any, builder: Any, network: Any, job: EngineJob) -> Any:
    config = builder.create_builder_config()
    config.max_aux_streams = 0  # a captured CUDA graph and its session know one stream
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; a float32 product is one
    for flag in builder_flags(job.stripped, job.refit):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if job.sm:
        config.num_compute_capabilities = len(job.sm)
        for i, sm in enumerate(job.sm):
            config.set_compute_capability(_capability(trt, sm, job), i)
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    for profile in job.profiles:
        _add_profile(builder, config, profile, inputs, job.graph)
    return config


def builder_flags(stripped: bool, refit: bool) -> list[str]:
    """Names of the builder's flags: a stripped plan is refitted with the weights it was built from, and with these
    alone, which lets the builder use them; one for other weights may not."""
    kinds = ["REFIT"] if refit else ["REFIT_IDENTICAL"] if stripped else []
    return [*kinds, *(["STRIP_PLAN"] if stripped else [])]


def _capability(trt: Any, sm: int, job: EngineJob) -> Any:
    members = trt.ComputeCapability.__members__
    if (name := f"SM{sm}") not in members:
        known = ", ".join(m for m in members if m.startswith("SM"))
        raise MissingBackend(f"{job.module} builds no engines for {name}", where=job.graph, mend=f"it knows {known}")
    return members[name]


def _add_profile(builder: Any, config: Any, profile: ProfileShapes, inputs: set[str], graph: str) -> None:
    made = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        if name not in inputs:
            raise EECompileError(f"the profile {profile.name} names {name}, which is no input", where=graph)
        made.set_shape(name, tuple(shapes.min), tuple(shapes.opt), tuple(shapes.max))
    if config.add_optimization_profile(made) < 0:
        raise EECompileError(f"the profile {profile.name} is not valid", where=graph)


def _timing_cache(config: Any, job: EngineJob) -> Any:
    """The shared cache set into `config`, begun anew where another version or GPU wrote the file; None: none asked."""
    if job.timing_cache is None:
        return None
    path = Path(job.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _parser_errors(parser: Any) -> str:
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    texts = [f"node {e.node_name() or e.node()} ({e.node_operator()}): {_line(e.desc())}" for e in found[:_SHOWN]]
    return "; ".join(texts) + (f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else "")


def _line(text: str) -> str:
    return " ".join(str(text).split())[:600]


def _logger(trt: Any) -> Any:
    """A logger that keeps what is said of faults."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.faults.append(_line(message))

        def said(self) -> str:
            telling = [fault for fault in self.faults if _NO_DRIVER not in fault] or self.faults
            return "; ".join(telling[-_SHOWN:]) or "it does not say why"

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    """Tells of the builder's outermost phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                progress(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
