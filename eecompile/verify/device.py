"""A device's graphs against the bundle's own, both in ONNX Runtime: the same passes, each set on caches of its own.

What engines will be made of is so shown to be the model before there is a device: prefill, single rows, several rows of
ragged slots, every exit and head. What a parser makes of the graphs is not shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.factors import Factors, read_factors
from eecompile.bundle.manifest import DeviceGraphs, Graphs, Manifest
from eecompile.engines.ort import processors, use_threads
from eecompile.schema import GraphInfo
from eecompile.segments.decision import decision_function
from eecompile.verify.compare import Comparator
from eecompile.verify.report import Check, at_most
from eecompile.verify.tolerances import DEVICE, DEVICE_SCORES

Arrays = dict[str, NDArray[Any]]
Float = NDArray[np.float32]
SCORES = ("decision", c.CONFIDENCE, c.SATURATION, c.PREDICTION)
PREFILL, SEVERAL, LAG = 16, 5, 3  # rows of the passes, and rows that the second slot has less
_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "int64": np.int64, "bool": np.bool_}


@dataclass(frozen=True)
class Pass:
    """One pass: token ids [B, R], where each slot's rows begin [B], and how many rows of each slot are live [B]."""

    ids: NDArray[np.int64]
    start: NDArray[np.int64]
    live: NDArray[np.int64]


@dataclass
class Runner:
    """One set of graphs in ONNX Runtime, `length` cache rows for each slot."""

    root: Path
    graphs: Graphs
    manifest: Manifest
    slots: int
    caches: list[Arrays] = field(default_factory=list)
    sessions: dict[str, ort.InferenceSession] = field(default_factory=dict)

    def run(self, which: Pass, factors: Sequence[Factors], seed: int) -> Iterator[tuple[str, Float]]:
        """Yield the live rows [N, D] at every boundary, and what exits and heads say of them, by name."""
        rows = np.arange(which.ids.shape[1])
        live = rows < which.live[:, None]
        shared: Arrays = {c.POSITIONS: which.start[:, None] + rows, c.WRITE_INDEX: which.start}
        hidden = self._call(self.graphs.embed, {c.TOKEN_IDS: which.ids})[c.HIDDEN_OUT]
        for number, step in enumerate(self.manifest.schedule):
            caches = self._caches(number, self.graphs.segments[step.segment])
            given = {**shared, c.HIDDEN: hidden, **factors[number], **caches}
            outputs = self._call(self.graphs.segments[step.segment], given)
            caches.update({name: outputs[c.updated(name)] for name in caches})
            hidden = outputs[c.HIDDEN_OUT]
            yield f"segment {step.segment}", hidden[live]
            if step.exit is not None:
                info = self.graphs.exits[step.exit]
                at = hidden if info.layers else hidden[live]
                yield from self._asked(f"exit {step.exit}", info, {**shared, c.HIDDEN: at}, seed)
        for name, info in [("head", self.graphs.head), *((f"head {i}", g) for i, g in enumerate(self.graphs.heads))]:
            given = {
                c.HIDDEN: hidden[live],
                c.THRESHOLDS: np.tile(np.array(c.NO_BOUND, np.float32), (int(live.sum()), 1)),
            }
            outputs = self._call(info, given)
            yield name, outputs[c.LOGITS]
            decided = np.stack([outputs[part] for part in (c.MAX_PROB, c.MARGIN, c.ENTROPY)], axis=1)
            yield f"{name}'s decision", decided

    def _asked(self, name: str, info: GraphInfo, given: Arrays, seed: int) -> Iterator[tuple[str, Float]]:
        """What an exit makes of rows, its gates' weights being made up."""
        rng = np.random.default_rng(seed)
        rows = given[c.HIDDEN].shape[:-1]
        sizes = {"N": int(np.prod(rows)), "B": self.slots, c.LENGTH: self.manifest.model.context + self.manifest.slack}
        for t in (t for t in info.inputs if t.name not in given):
            shape = [sizes[d] if isinstance(d, str) else d for d in t.shape]
            if t.dtype == "float32" and "_cache_" not in t.name:
                given[t.name] = (rng.standard_normal(shape) / np.sqrt(max(shape[0], 1))).astype(np.float32)
            else:
                given[t.name] = np.full(shape, -1 if t.name == c.CANDIDATES else 0, _DTYPES[t.dtype])
        outputs = self._call(info, {t.name: given[t.name] for t in info.inputs})
        for key in (c.EXIT_HIDDEN, c.CONFIDENCE, c.SATURATION, c.CHOICES, c.PREDICTION):
            if key in outputs:
                yield f"{name} {key}", outputs[key].reshape(len(outputs[key]), -1)

    def _caches(self, step: int, info: GraphInfo) -> Arrays:
        """The caches of a step, zeros at first."""
        while len(self.caches) <= step:
            self.caches.append({})
        if not self.caches[step]:
            sizes = {"B": self.slots, c.LENGTH: self.manifest.model.context + self.manifest.slack}
            outputs = {t.name for t in info.outputs}
            for t in info.inputs:
                if c.updated(t.name) in outputs and t.name != c.HIDDEN:
                    shape = [sizes[d] if isinstance(d, str) else d for d in t.shape]
                    self.caches[step][t.name] = np.zeros(shape, _DTYPES[t.dtype])
        return self.caches[step]

    def _call(self, info: GraphInfo, given: Mapping[str, NDArray[Any]]) -> Arrays:
        if info.path not in self.sessions:
            self.sessions[info.path] = open_graph(self.root / info.path)
        names = [t.name for t in info.outputs]
        inputs = {t.name: given[t.name] for t in info.inputs}
        return dict(zip(names, self.sessions[info.path].run(names, inputs), strict=True))


def open_graph(path: Path) -> ort.InferenceSession:
    """A graph in ONNX Runtime. The exit decision gets the body that a graph for a plugin leaves out."""
    use_threads(processors())
    model = onnx.load(path, load_external_data=False)
    if not model.functions and any(node.domain == c.DECISION_DOMAIN for node in model.graph.node):
        model.functions.append(decision_function(next(o.version for o in model.opset_import if not o.domain)))
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # products of the type given
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):  # it takes 8-bit floats for integers
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def passes(ids: Sequence[int], context: int, slots: int) -> list[Pass]:
    """A prefill pass, one of a single row and one of several; the second slot has fewer live rows in the first one, so
    that its rows stand elsewhere from then on."""
    first = max(1, min(PREFILL, context - SEVERAL - 1, len(ids) - SEVERAL - 1))
    lag = np.array([LAG if slot % 2 and first > LAG else 0 for slot in range(slots)])
    made: list[Pass] = []
    start = np.zeros(slots, np.int64)
    for rows in (first, 1, min(SEVERAL, context - first - 1)):
        live = np.full(slots, rows, np.int64) - (lag if not made else 0)
        places = (start[:, None] + np.arange(rows)) % len(ids)
        made.append(Pass(np.asarray(ids, np.int64)[places], start.copy(), live))
        start = start + live
    return made


def compare_device(
    root: Path, manifest: Manifest, device: DeviceGraphs, ids: Sequence[int], slots: int
) -> dict[str, tuple[Float, Float]]:
    """What the device's graphs and the bundle's own say of the same tokens, by name: rows [N, ..] of all passes."""
    factors = read_factors(root, manifest)
    runners = [Runner(root, graphs, manifest, slots) for graphs in (device.graphs, manifest.graphs)]
    found: dict[str, tuple[list[Float], list[Float]]] = {}
    for seed, which in enumerate(passes(ids, manifest.model.context, slots)):
        for (name, actual), (_, expected) in zip(*(r.run(which, factors, seed) for r in runners), strict=True):
            both = found.setdefault(name, ([], []))
            both[0].append(actual)
            both[1].append(expected)
    return {name: (np.concatenate(a), np.concatenate(b)) for name, (a, b) in found.items()}


def check_device(root: Path, manifest: Manifest, ids: Sequence[int], compare: Comparator) -> list[Check]:
    """The device's graphs against the bundle's own; none where there are none. bfloat16 is not run: ONNX Runtime's CPU
    has no kernels for it."""
    device = manifest.device
    if device is None:
        return []
    name = f"device graphs ({device.target})"
    what = f"{device.dialect}, {device.compute}, against the bundle's own in ONNX Runtime"
    if device.compute == "bfloat16":
        return [Check(name, True, note=f"{what}: not run, it has no bfloat16")]
    kind = device.compute if manifest.precision not in c.SCALED else manifest.precision
    bounds, most = DEVICE[kind], DEVICE_SCORES[kind]
    figures: dict[str, float] = {**dict.fromkeys(bounds, 0.0), "score": 0.0}
    passed, worst = True, ""
    for where, (actual, expected) in compare_device(root, manifest, device, ids, min(manifest.slots, 2)).items():
        if is_score(where):
            figure = largest_difference(actual, expected)
            figures["score"], passed = max(figures["score"], figure), passed and figure <= most
            continue
        for statistic, (figure, holds) in compare(actual, expected, bounds).items():
            if not figure <= figures[statistic]:
                figures[statistic], worst = figure, where
            passed = passed and holds
    tolerance: dict[str, str] = {statistic: at_most(bound) for statistic, bound in bounds.items()}
    tolerance["score"] = at_most(most)
    return [Check(name, passed, figures, tolerance, f"{what}; worst at {worst}")]


def is_score(where: str) -> bool:
    """Whether what has this name are scores: probabilities, entropies and cosines, that are compared as they are."""
    return where.endswith(SCORES)


def largest_difference(actual: Float, expected: Float) -> float:
    """The largest difference of scores; those that are no number in both, as the cosine with nothing, are equal."""
    off = np.abs(actual.astype(np.float64) - expected)
    return float(np.where(np.isnan(actual) & np.isnan(expected), 0.0, off).max())
