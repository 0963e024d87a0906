"""`build` for encoders: from a checkpoint with a classifier to a bundle, the stages in order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eecompile import __version__
from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.manifest import ExitInfo, ExitPolicy, Manifest
from eecompile.bundle.sources import write_runtime
from eecompile.bundle.write import BundleWriter
from eecompile.errors import UsageError
from eecompile.segments.split import WrittenGraphs
from eecompile.segments.split_encoder import write_encoder
from eecompile.student.encoder_reference import record_reference
from eecompile.student.encoder_student import EncoderStudent
from eecompile.target import Target

Progress = Callable[[str], None]
REFERENCE_TOKENS = 24
_UNUSED = 1  # what only a decoder's runtime reads: pending tokens, prefill, slack, slots


def plan_encoder(
    student: EncoderStudent, target: Target, precision: str | None, context: int | None, others: dict[str, int | None]
) -> dict[str, Any]:
    """What a build would do, checked against model and target; `others` are options that only decoders have.

    Raises UsageError where it cannot be done.
    """
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(f"an encoder has no {given[0]}", mend="leave the option out: it is for language models")
    precision = precision or target.precision
    if precision not in target.precisions:
        raise UsageError(f"target {target.name} has no {precision}", mend=f"precisions: {', '.join(target.precisions)}")
    most = min(student.spec.max_positions, target.context)
    context = most if context is None else context
    if not 1 <= context <= most:
        raise UsageError(f"context {context} is not from 1 to {most}", mend="--context takes at most the model's own")
    exits = [e.layer for e in student.exits.schema.exits]
    return {"precision": precision, "context": context, "exits": exits, "task": student.spec.task}


def build_encoder(
    student: EncoderStudent, target: Target, out: Path, chosen: dict[str, Any], *, runtime: bool = False,
    progress: Progress = lambda stage: None,
) -> Manifest:  # fmt: skip
    """Write the bundle at `out`, as `plan_encoder` chose, and return its manifest; all of it or nothing. runtime: with
    the C++ runtime's sources."""
    with BundleWriter(out) as writer:
        graphs = write_encoder(student, writer.path, precision=chosen["precision"], progress=progress)
        for file in student.tokenizer_files:
            (writer.path / "tokenizer").mkdir(exist_ok=True)
            (writer.path / "tokenizer" / file.name).write_bytes(file.read_bytes())
        if runtime:
            write_runtime(writer.path)
        progress("reference")
        count = min(REFERENCE_TOKENS, chosen["context"])
        record_reference(student, writer.path / "reference", count)
        progress("bundle")
        fields = _manifest_fields(student, target, graphs, chosen)
        return writer.commit(fields, hashes=graphs.hashes, overlays=_overlays(student, chosen))


def _manifest_fields(
    student: EncoderStudent, target: Target, graphs: WrittenGraphs, chosen: dict[str, Any]
) -> dict[str, Any]:
    spec, granular = student.spec, student.spec.per_token
    return {
        "eecompile": __version__,
        "task": spec.task,
        "labels": list(spec.labels),
        "encoder": {"types": spec.types, "padding": spec.padding},
        "model": {
            "family": spec.family, "layers": spec.layers, "hidden": spec.hidden, "heads": spec.heads,
            "kv_heads": spec.heads, "head_dim": spec.head_dim, "vocab": spec.vocab, "context": chosen["context"],
            "parameters": sum(int(np.prod(shape)) for shape in spec.shapes().values()),
        },
        "target": target.name,
        "precision": chosen["precision"],
        "kv_rules": list(c.GRANULARITIES.values()) if granular else [c.GRANULARITIES["sentence"]],
        "pending_cap": _UNUSED, "prefill_rows": _UNUSED, "minimum_rows": _UNUSED, "slack": _UNUSED + 1,
        "slots": _UNUSED,
        "exits": [e.model_dump() for e in _exit_infos(student)],
        "schedule": graphs.schedule,
        "caches": [segment.layers for segment in graphs.graphs.segments],
        "graphs": graphs.described(),
        "tokenizer": bool(student.tokenizer_files),
        "provenance": {**student.exits.schema.provenance, "checkpoint": student.path.name},
    }  # fmt: skip


def _overlays(student: EncoderStudent, chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The student's exits as a policy, and those of its calibrations that hold for this build."""
    policy = [ExitPolicy(layer=e.layer, confident=None, draft=None) for e in student.exits.schema.exits]
    gates, overlays = gates_digest(_exit_infos(student), policy), {}
    for found in student.exits.schema.calibrations:
        if (found.precision, found.pending_cap, found.gates) == (chosen["precision"], _UNUSED, gates):
            overlays[f"overlays/calibration-{found.precision}-{found.kv}-{_UNUSED}.json"] = found.model_dump()
            if found.chosen is not None:
                thresholds = found.path[found.chosen].thresholds
                policy = [e.model_copy(update={"confident": t}) for e, t in zip(policy, thresholds, strict=True)]
    overlays[c.POLICY] = {"exits": [e.model_dump() for e in policy]}
    return overlays


def _exit_infos(student: EncoderStudent) -> list[ExitInfo]:
    return [ExitInfo.model_validate(e.model_dump(exclude={"draft", "placement"})) for e in student.exits.schema.exits]
