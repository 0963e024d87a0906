"""A bundle's graphs one after another, on the inputs of its uncut graph: what the cut must leave unchanged.

Full depth, no policy, no pool: each graph is an ONNX Runtime session of its own that takes and gives numpy arrays, so
that any other engine of the same graph can be held against it. Sessions load as they are first needed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Step
from eecompile.bundle.read import BundleFiles
from eecompile.engines.ort import thread_pool
from eecompile.errors import UsageError
from eecompile.schema import GraphInfo, TensorInfo

Arrays = Mapping[str, NDArray[Any]]
_NUMBERED = re.compile(rf"((?:key|value)_(?:cache|scale)_|{c.LORA}[ab]_)(\d+)(.*)")


@dataclass(frozen=True)
class GraphRun:
    """One graph that ran: its name (of its file, without the suffix), its inputs and its outputs by tensor name. step:
    number of the schedule's step, None outside it; first: what its first layer is numbered in the uncut graph."""

    name: str
    inputs: Arrays
    outputs: Arrays
    step: int | None = None
    first: int = 0


class Chain:
    """The decoder graphs of an intact bundle. Not thread-safe. Memory: the weights of the graphs that ran."""

    def __init__(self, files: BundleFiles) -> None:
        self._root, self._manifest = files.path, files.manifest
        self._sessions: dict[str, ort.InferenceSession] = {}

    @property
    def uncut(self) -> GraphInfo:
        """The uncut graph, whose inputs the chain takes. Raises UsageError where the bundle has none."""
        info = self._manifest.graphs.reference
        if info is None:
            raise UsageError(
                "the bundle has no uncut graph to compare its segments with", where=str(self._root),
                mend="classifiers and students with cyclic gates have none: `eecompile verify` checks them",
            )  # fmt: skip
        return info

    def infer(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """The uncut graph's outputs, in its order, of its inputs by name."""
        found: dict[str, NDArray[Any]] = {}
        for run in self.runs(feed):
            found |= {numbered(name, run.first): array for name, array in run.outputs.items()}
        return {tensor.name: found[tensor.name] for tensor in self.uncut.outputs}

    def runs(self, feed: Arrays) -> Iterator[GraphRun]:
        """Run embedding, every step and the head on the uncut graph's inputs; each graph runs when it is asked for."""
        graphs = self._manifest.graphs
        run = self._run(graphs.embed, {c.TOKEN_IDS: feed[c.TOKEN_IDS]})
        yield run
        first = 0
        for number, step in enumerate(self._manifest.schedule):
            inputs = {c.HIDDEN: run.outputs[c.HIDDEN_OUT], **self._inputs(step, first, feed)}
            run = self._run(graphs.segments[step.segment], inputs, number, first)
            yield run
            first += self._manifest.caches[step.cache]
        rows = run.outputs[c.HIDDEN_OUT].reshape(-1, self._manifest.model.hidden)
        yield self._run(graphs.head, {c.HIDDEN: rows, c.THRESHOLDS: feed[c.THRESHOLDS]})

    def run_graph(self, info: GraphInfo, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The outputs of one of the bundle's graphs."""
        if info.path not in self._sessions:
            self._sessions[info.path] = _session(self._root / info.path)
        names = [tensor.name for tensor in info.outputs]
        return dict(zip(names, self._sessions[info.path].run(names, dict(inputs)), strict=True))

    def _run(self, info: GraphInfo, inputs: Arrays, step: int | None = None, first: int = 0) -> GraphRun:
        return GraphRun(graph_name(info), inputs, self.run_graph(info, inputs), step, first)

    def _inputs(self, step: Step, first: int, feed: Arrays) -> dict[str, NDArray[Any]]:
        """What the uncut graph's inputs are called in the segment of a step whose layers are its `first` and on."""
        info = self._manifest.graphs.segments[step.segment]
        return {t.name: feed[numbered(t.name, first)] for t in info.inputs if t.name != c.HIDDEN}


def graph_name(info: GraphInfo) -> str:
    """A graph's file name, without the suffix."""
    return Path(info.path).stem


def numbered(name: str, first: int) -> str:
    """The uncut graph's name of a segment's tensor: caches and LoRA are numbered from its layer `first` on there."""
    found = _NUMBERED.fullmatch(name)
    return name if found is None else f"{found[1]}{int(found[2]) + first}{found[3]}"


def cache_inputs(info: GraphInfo) -> list[TensorInfo]:
    """A graph's caches and what is kept beside them: inputs [B, .., T, ..] that it also gives back, updated."""
    kept = {t.name for t in info.outputs}
    return [t for t in info.inputs if len(t.shape) == 4 and c.updated(t.name) in kept]


def empty_caches(info: GraphInfo, rows: int) -> dict[str, NDArray[Any]]:
    """Zeros for a graph's cache inputs, of one slot and `rows` rows where the graph leaves that open."""
    sizes = {"B": 1, c.LENGTH: rows}
    return {
        t.name: np.zeros([sizes[n] if isinstance(n, str) else n for n in t.shape], t.dtype) for t in cache_inputs(info)
    }


def _session(path: Path) -> ort.InferenceSession:
    """With the threads that this process already has, or its own; as exact in quantised products as the runtime is."""
    options = ort.SessionOptions()
    options.use_per_session_threads = not thread_pool()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
