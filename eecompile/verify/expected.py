"""What each graph of a bundle should make of the recorded prompt, by someone other than an engine: the float32 model
whose rows were recorded at build, and float64 arithmetic on the weights that the bundle stores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.runtime import Bundle
from eecompile.verify.chain import Arrays
from eecompile.verify.criteria import criteria_of, fires
from eecompile.verify.exits import exit_math
from eecompile.verify.heads import TOLERANCE, small_head_logits
from eecompile.verify.outputs import GATES, OutputRules, exit_graph, float32_model
from eecompile.verify.recording import Recording
from eecompile.verify.tolerances import BANDS, coarsest

Expected = tuple[list[Arrays], OutputRules]  # outputs of each run, and how far an engine's may be off


def expected_outputs(bundle: Bundle, recording: Recording) -> dict[str, Expected]:
    """By graph; without those that nobody else computes: embedding, encoder, exits with a module, and segments whose
    rows were not recorded."""
    found = {graph: _segment(bundle, recording, graph) for graph in recording.graphs if recording.steps(graph)}
    found |= {f"exit_{i}": _exit(bundle, recording, i) for i in range(len(bundle.manifest.exits))}
    heads = {f"head_{head.name}": small_head_logits(bundle, head.name) for head in bundle.manifest.heads}
    found |= {graph: _small_head(bundle, recording, graph, logits) for graph, logits in heads.items()}
    return {name: made for name, made in found.items() if made is not None} | {"head": _head(bundle, recording)}


def gate_thresholds(info: ExitInfo, policy: ExitPolicy) -> dict[str, list[float]]:
    """The policy's thresholds of an exit's cheap gates, by the output that each goes by."""
    given: list[Mapping[Any, float]] = [dict(t) for t in (policy.confident, policy.draft) if t]
    return {
        output: [thresholds[gate] for thresholds in given if gate in thresholds]
        for output, gate in GATES.items()
        if gate in info.gates
    }


def _segment(bundle: Bundle, recording: Recording, graph: str) -> Expected | None:
    """Rows after each of the segment's steps, in the order of its runs."""
    manifest = bundle.manifest
    depths = np.cumsum([manifest.caches[step.cache] for step in manifest.schedule])
    known = {**recording.rows.hidden, manifest.model.layers: recording.rows.finished}
    at = [int(depths[k]) for k in recording.steps(graph)]
    if not all(depth in known for depth in at):
        return None
    spans = [(start, end, depth) for start, end in recording.spans for depth in at]
    outputs: list[Arrays] = [{c.HIDDEN_OUT: known[depth][None, start:end]} for start, end, depth in spans]
    return outputs, float32_model(coarsest(manifest))


def _exit(bundle: Bundle, recording: Recording, exit_: int) -> Expected | None:
    info, policy = bundle.manifest.exits[exit_], bundle.files.policy.exits[exit_]
    math = exit_math(bundle, None)[exit_]
    if math is None:
        return None
    outputs: list[Arrays] = []
    for feed in recording.feeds(f"exit_{exit_}"):
        hidden, confidence = math([feed[c.HIDDEN]])
        outputs.append({c.EXIT_HIDDEN: hidden} | ({c.CONFIDENCE: confidence} if "learned" in info.gates else {}))
    return outputs, exit_graph(gate_thresholds(info, policy))


def _head(bundle: Bundle, recording: Recording) -> Expected:
    """The recorded logits; where weights are not quantised, also what they decide."""
    (feed,) = recording.feeds("head")
    logits = recording.rows.logits
    outputs: dict[str, NDArray[Any]] = {c.LOGITS: logits}
    if bundle.manifest.precision not in c.ROUNDED:
        outputs |= decided(logits, feed[c.THRESHOLDS])
    return [outputs], float32_model(bundle.manifest.precision)


def _small_head(bundle: Bundle, recording: Recording, graph: str, logits: Callable[[Any], Any]) -> Expected:
    (feed,) = recording.feeds(graph)
    precision = bundle.manifest.precision
    return [{c.LOGITS: logits(feed[c.HIDDEN])}], OutputRules(TOLERANCE[precision], BANDS[precision])


def decided(logits: NDArray[np.float32], thresholds: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The decision node's outputs for logits [N, V] of all tokens and thresholds [N, 3], in float64."""
    values = criteria_of(logits)
    flags: Sequence[NDArray[np.bool_]] = [
        np.array([fires(name, value[i], bound) for i, bound in enumerate(thresholds[:, column])])
        for column, (name, value) in enumerate(values.items())
    ]
    return {c.TOKEN: logits.argmax(axis=1), **values, c.EXIT_FLAG: np.logical_and.reduce(flags)}
