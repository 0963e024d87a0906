"""The checks of a bundle's graphs one by one: what each takes, what it should give, and what runs it.

Beside the bundle's own graphs, those that a device's engines are made of are held against the bundle's own, on the same
inputs: in ONNX Runtime where it can run them, and in TensorRT where that is installed.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eecompile import contract as c
from eecompile.bundle.manifest import DeviceGraphs
from eecompile.engines.plan import GraphPlan
from eecompile.runtime import Bundle
from eecompile.runtime.device_plan import device_plan
from eecompile.verify.chain import Arrays, cache_inputs, graph_name
from eecompile.verify.expected import Expected, expected_outputs
from eecompile.verify.outputs import device_graph
from eecompile.verify.recording import UNCUT, Recording

ORT = ("--onnxrt",)


@dataclass(frozen=True)
class GraphCheck:
    """`name` is that of its functions, files and log. feeds: the own graph whose inputs it takes, and the length
    of the caches among them (None: as long as the prompt). runner: the options that choose what runs the graph."""

    name: str
    path: Path
    feeds: tuple[str, int | None]
    expected: Expected | None
    runner: tuple[str, ...] = ORT


def graph_checks(bundle: Bundle, recording: Recording) -> list[GraphCheck]:
    """Of every graph but the uncut one."""
    expected, root = expected_outputs(bundle, recording), bundle.files.path
    own = [
        GraphCheck(name, root / info.path, (name, None), expected.get(name))
        for name, info in recording.graphs.items()
        if name != UNCUT
    ]
    device = bundle.manifest.device
    return own if device is None else own + _device_checks(bundle, device)


def _device_checks(bundle: Bundle, device: DeviceGraphs) -> list[GraphCheck]:
    """Of the graphs that engines are made of, for each runner that can run it. A graph whose decision is the plugin's
    alone, without a body, is left to engines: neither runner knows the plugin."""
    manifest, root = bundle.manifest, bundle.files.path
    plan, length = device_plan(bundle.files), manifest.model.context + manifest.slack
    recording = Recording(bundle.files, length)
    checks = []
    for info in (device.graphs.embed, *device.graphs.segments, *device.graphs.exits, device.graphs.head,
                 *device.graphs.heads):  # fmt: skip
        name = graph_name(info)
        own = name.removeprefix(c.DEVICE_PREFIX)
        planned = plan.graph(own)
        if planned.plugin and plan.plugin == "required":
            continue
        expected = _by_own_graph(recording, own), device_graph(manifest.precision, device.compute)
        where, feeds = root / info.path, (own, length)
        if device.compute != "bfloat16":  # which ONNX Runtime has no kernels for
            checks.append(GraphCheck(name, where, feeds, expected))
        if plan.backend == "tensorrt" and find_spec("tensorrt") is not None:
            checks.append(GraphCheck(f"{name}_trt", where, feeds, expected, _tensorrt(planned)))
    return checks


def _by_own_graph(recording: Recording, name: str) -> list[Arrays]:
    """What the bundle's own graph gives, its caches left out."""
    info = recording.graphs[name]
    kept = {c.updated(t.name) for t in cache_inputs(info)}
    runs = [recording.chain.run_graph(info, feed) for feed in recording.feeds(name)]
    return [{name: array for name, array in outputs.items() if name not in kept} for outputs in runs]


def _tensorrt(graph: GraphPlan) -> tuple[str, ...]:
    """Options for an engine of one profile, the widest."""
    shapes = graph.profiles[-1].shapes
    options = [f"--{flag.replace('_', '-')}" for flag in graph.flags]
    for which in ("min", "opt", "max"):
        options += [f"--trt-{which}-shapes"]
        options += [f"{name}:[{','.join(map(str, getattr(dims, which)))}]" for name, dims in shapes.items()]
    return ("--trt", *options)
