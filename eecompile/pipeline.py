"""`build`: from checkpoint to bundle, the stages in order."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import __version__
from eecompile import contract as c
from eecompile.bundle.digest import document_layout, gates_digest
from eecompile.bundle.gates import KINDS, encode_gate
from eecompile.bundle.manifest import ExitInfo, ExitPolicy, GateWeights, Manifest, Policy
from eecompile.bundle.sources import write_runtime
from eecompile.bundle.write import BundleWriter
from eecompile.errors import IntegrityError, UsageError
from eecompile.pipeline_device import choose_device, refuse_device, write_device
from eecompile.pipeline_encoder import build_encoder, plan_encoder
from eecompile.pipeline_scales import Samples, product_scales
from eecompile.runtime import Bundle
from eecompile.runtime.chat import chat_form
from eecompile.runtime.template import read_template
from eecompile.schema import CalibrationResult
from eecompile.segments.split import Cut, WrittenGraphs, write_segments
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.encoder_student import EncoderStudent
from eecompile.student.exits import ExitSpec
from eecompile.student.student import Student
from eecompile.target import Target, load_target

Progress = Callable[[str], None]
DEFAULT_CONTEXT = 2048
REFERENCE_TOKENS = 24
MOST_MINIMUM_ROWS = 16


@dataclass(frozen=True)
class BuildOptions:
    """precision None: the target's own. context None: the model's, at most 2048. minimum_rows: pad shorter passes, for
    an engine that computes a lone row by another kernel (`verify` tells). slots: sequences that a batch may have at
    most; a bundle of one slot may use faster operators. kv: rules for skipped layers; catch_up is always among them.
    cache: what keys and values are kept in; None: float16 for engines, else float32. compute: the type of
    products and attention in engines; None: float32 for float32 weights, else float16. runtime: with the C++ runtime's
    sources (`eecompile build` has them). samples: token ids of texts, which products of 8-bit numbers are scaled by."""

    precision: str | None = None
    context: int | None = None
    pending_cap: int | None = None
    minimum_rows: int = 1
    slots: int = 1
    kv: tuple[str, ...] = ("catch_up",)
    cache: str | None = None
    compute: str | None = None
    runtime: bool = False
    samples: Samples = ()


def plan(student: Student | EncoderStudent, target: Target, options: BuildOptions) -> dict[str, Any]:
    """What a build would do, checked against model and target; raises UsageError where it cannot be done."""
    if isinstance(student, EncoderStudent):
        refuse_device(target, "an encoder")
        decoders = {"minimum of rows": options.minimum_rows, "number of slots": options.slots}
        others = {"pending cap": options.pending_cap, **{name: None if n == 1 else n for name, n in decoders.items()}}
        return plan_encoder(student, target, options.precision, options.context, others)
    precision = options.precision or target.precision
    if precision not in target.precisions:
        engines = precision == "int8" and "w8a8" in target.precisions
        mend = f"precisions: {', '.join(target.precisions)}{'; w8a8 is its int8' if engines else ''}"
        raise UsageError(f"target {target.name} has no {precision}", mend=mend)
    most = min(student.spec.max_positions, target.context)
    context = min(most, DEFAULT_CONTEXT) if options.context is None else options.context
    if not 1 <= context <= most:
        raise UsageError(f"context {context} is not from 1 to {most}", mend="--context takes at most the model's own")
    cap = min(c.PENDING_CAP, target.pending) if options.pending_cap is None else options.pending_cap
    if not 1 <= cap <= target.pending:
        raise UsageError(f"pending cap {cap} is not from 1 to {target.pending}")
    if not 1 <= options.minimum_rows <= MOST_MINIMUM_ROWS:
        raise UsageError(f"minimum rows {options.minimum_rows} is not from 1 to {MOST_MINIMUM_ROWS}")
    if not 1 <= options.slots <= target.batch:
        raise UsageError(f"a batch of {options.slots} is not from 1 to the target's {target.batch}")
    if options.cache not in (None, *c.CACHES):
        raise UsageError(f"there is no cache type {options.cache!r}", mend=f"types: {', '.join(c.CACHES)}")
    types = choose_device(target, precision, options.cache, options.compute)
    if isinstance(student.spec, EncoderDecoderSpec):
        refuse_device(target, "an encoder-decoder")
    if isinstance(student.spec, EncoderDecoderSpec) and options.slots > 1:
        raise UsageError("an encoder-decoder runs one sequence at a time", mend="build it with --batch 1")
    kv = _kv_rules(student, options)
    exits = [e.depth for e in student.exits.schema.exits]
    sizes = {"slots": options.slots, "context": context, "pending_cap": cap, "minimum_rows": options.minimum_rows}
    return {"precision": precision, **types, "kv": kv, **sizes, "exits": exits}


def _kv_rules(student: Student, options: BuildOptions) -> list[str]:
    """The rules for skipped layers, catch_up first."""
    unknown = [rule for rule in options.kv if rule not in c.KV_RULES]
    if unknown:
        raise UsageError(f"there is no K/V rule {unknown[0]!r}", mend=f"rules: {', '.join(c.KV_RULES)}")
    attends = any(e.adapter == "layer" for e in student.exits.schema.exits)
    if "propagate" in options.kv and (student.loops is not None or student.cycles or attends):
        raise UsageError(
            "the rule propagate fills layers that run once, and caches of the model's own layers alone",
            where=c.EARLY_EXIT, mend="build this student without --kv propagate",
        )  # fmt: skip
    if "selected" in options.kv and attends:
        raise UsageError(
            "the rule selected lets exits with a decoder layer miss the rows of tokens that stopped before them",
            where=c.EARLY_EXIT, mend="build this student without --kv selected",
        )  # fmt: skip
    kv = [rule for rule in c.KV_RULES if rule == "catch_up" or rule in options.kv]
    if isinstance(student.spec, EncoderDecoderSpec) and len(kv) > 1:
        raise UsageError("an encoder-decoder knows the rule catch_up alone", mend="build it without --kv")
    return kv


def build(
    student: Student | EncoderStudent, target: Target, out: Path, options: BuildOptions, *,
    progress: Progress = lambda stage: None,
) -> Manifest:  # fmt: skip
    """Write the bundle at `out` and return its manifest. What stood there is replaced only once all is written."""
    chosen = plan(student, target, options)
    if isinstance(student, EncoderStudent):
        return build_encoder(student, target, out, chosen, runtime=options.runtime, progress=progress)
    student, scaled = student.at_context(chosen["context"]), chosen["precision"] in c.SCALED
    largest = product_scales(student, chosen["precision"], options.samples, progress) if scaled else {}
    with BundleWriter(out) as writer:
        slack = c.SLACK + (-chosen["context"]) % c.CACHE_BUCKET
        cut = Cut(
            student,
            chosen["precision"],
            chosen["context"],
            slack,
            fused=target.backend == "onnxruntime" and chosen["slots"] == 1,
            propagate="propagate" in chosen["kv"],
            selected="selected" in chosen["kv"],
            cache=chosen["cache"],
            largest=largest,
        )
        graphs = write_segments(cut, writer.path, progress=progress)
        device = None
        if target.backend != "onnxruntime":
            progress("device graphs")
            device = write_device(cut, target, chosen, writer.path, graphs.book)
        _copy_tokenizer(student, writer.path)
        if options.runtime:
            write_runtime(writer.path)
        progress("reference")
        _record_reference(student, writer.path / "reference", chosen["context"])
        progress("bundle")
        fields = {**_manifest_fields(student, target, graphs, chosen, slack), "device": device}
        if scaled:
            tokens, texts = sum(map(len, options.samples)), len(options.samples)
            fields["provenance"]["scaled by"] = f"{tokens} tokens of {texts} texts"
        try:
            return writer.commit(fields, hashes=graphs.hashes, overlays=_overlays(student, chosen))
        except IntegrityError as e:
            if "calibration" not in e.where:
                raise
            mend = "calibrate the exits again"
            raise UsageError(f"a calibration that does not fit: {e.what}", where=c.EARLY_EXIT, mend=mend) from e


def _manifest_fields(
    student: Student, target: Target, graphs: WrittenGraphs, chosen: dict[str, Any], slack: int
) -> dict[str, Any]:
    spec = student.spec
    return {
        "eecompile": __version__,
        "model": {
            "family": spec.family, "layers": spec.layers, "hidden": spec.hidden, "heads": spec.heads,
            "kv_heads": spec.kv_heads, "head_dim": spec.head_dim, "vocab": spec.vocab, "context": chosen["context"],
            "bos": spec.bos, "eos": list(spec.eos),
            "parameters": _parameters(student),
        },
        "target": target.name,
        "precision": chosen["precision"],
        "cache": chosen["cache"],
        "kv_rules": chosen["kv"],
        "pending_cap": chosen["pending_cap"],
        "prefill_rows": c.PREFILL_ROWS,
        "minimum_rows": chosen["minimum_rows"],
        "slack": slack,
        "slots": chosen["slots"],
        "exits": [e.model_dump() for e in _exit_infos(student)],
        "heads": [head.model_dump() for head in student.exits.schema.heads],
        "schedule": graphs.schedule,
        "caches": [graphs.graphs.segments[step["segment"]].layers for step in graphs.schedule],
        "graphs": graphs.described(),
        "source": {"context": chosen["context"], "start": spec.start} if isinstance(spec, EncoderDecoderSpec) else None,
        "tokenizer": bool(student.tokenizer_files),
        "provenance": {**student.exits.schema.provenance, "checkpoint": student.path.name},
    }  # fmt: skip


def _parameters(student: Student) -> int:
    """Weights that are stored: a layer that runs several times counts once, its loops' LoRA as it is."""
    own, loops = student.own_spec, student.loops
    shapes = [*own.shapes().values(), *(loops.factor_shapes(own).values() if loops is not None else ())]
    return sum(int(np.prod(shape)) for shape in shapes)


def _overlays(student: Student, chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The student's exits as a policy, and that of its calibrations that holds for this build."""
    policy = [
        ExitPolicy(layer=e.depth, confident=None, draft=e.draft).model_copy(
            update={kind: _gate(student, e, kind) for kind in KINDS}
        )
        for e in student.exits.schema.exits
    ]
    overlays: dict[str, dict[str, Any]] = {}
    for found in _matching(student, chosen, gates_digest(_exit_infos(student), policy))[:1]:
        overlays[f"overlays/calibration-{found.precision}-{found.kv}-{found.pending_cap}.json"] = found.model_dump()
        thresholds = found.path[found.chosen or 0].thresholds
        policy = [e.model_copy(update={"confident": t}) for e, t in zip(policy, thresholds, strict=True)]
    overlays[c.POLICY] = {"exits": [e.model_dump() for e in policy]}
    return overlays


def _matching(student: Student, chosen: dict[str, Any], gates: str) -> list[CalibrationResult]:
    """The student's calibrations for this precision and pending cap that were measured with these gates."""
    wanted = (chosen["precision"], chosen["cache"], chosen["pending_cap"], gates)
    return [
        found
        for found in student.exits.schema.calibrations
        if (found.precision, found.cache, found.pending_cap, found.gates) == wanted
        and found.kv == "catch_up"
        and found.chosen is not None
    ]


def _exit_infos(student: Student) -> list[ExitInfo]:
    fields = [(e.depth, e.model_dump(exclude={"draft", "placement", "layer"})) for e in student.exits.schema.exits]
    return [ExitInfo.model_validate({"layer": depth, **own}) for depth, own in fields]


def _gate(student: Student, exit_: ExitSpec, kind: str) -> GateWeights | None:
    gate = student.exits.gate(exit_, kind)
    return None if gate is None else encode_gate(gate.get("w1"), gate.get("b1"), gate["w2"], gate["b2"])


def _copy_tokenizer(student: Student, root: Path) -> None:
    for file in student.tokenizer_files:
        (root / "tokenizer").mkdir(exist_ok=True)
        (root / "tokenizer" / file.name).write_bytes(file.read_bytes())
    template = read_template(root / "tokenizer")
    if template is not None and template.source:
        (root / c.CHAT).write_bytes(document_layout(chat_form(template).model_dump(mode="json")))


def _record_reference(student: Student, folder: Path, context: int) -> None:
    """A short prompt and what the float32 model makes of it: ids, hidden state at each exit, finished rows, logits."""
    spec = student.spec
    count = min(REFERENCE_TOKENS, context, spec.vocab)
    ids = (np.arange(count, dtype=np.int64) * 7919 + 11) % spec.vocab
    at = [e.depth for e in student.exits.schema.exits]
    source = ids[::-1] if isinstance(spec, EncoderDecoderSpec) else None
    model = student.reference(None if source is None else source.tolist())
    boundaries, finished, logits = model.run(ids.tolist(), at)
    folder.mkdir()
    arrays: dict[str, NDArray[Any]] = {"token_ids": ids, "finished": finished, "logits": logits[-4:]}
    if source is not None:
        arrays["source_ids"] = source
    for name, array in (arrays | {f"hidden_{n}": rows for n, rows in boundaries.items()}).items():
        np.save(folder / f"{name}.npy", array)


def stage_count(student: Student | EncoderStudent, target: Target | None = None, precision: str = "") -> int:
    """How often `build` calls its progress function; for the CPU unless a target is given."""
    schema, engines = student.exits.schema, target is not None and target.backend != "onnxruntime"
    optional = engines + (precision in c.SCALED) + isinstance(student.spec, EncoderDecoderSpec)
    return optional + 2 * len(schema.exits) + len(schema.heads) + 5


def build_plain(student: Student | EncoderStudent, out: Path) -> None:
    """A float32 bundle for the processor at hand, as fitting and calibrating exits need it."""
    build(student, load_target("cpu"), out, BuildOptions(precision="fp32"))


def profile_and_choose(
    bundle: Path, *, quick: bool = True, key: Path | None = None, progress: Progress = lambda stage: None
) -> Policy:
    """Measure this machine's pass times into the bundle and close the exits that lose time on it."""
    from eecompile.bench.defaults import apply_default_policy
    from eecompile.bench.profile import measure_profile, write_profile

    opened = Bundle.open(bundle, integrity="size")
    profile = measure_profile(opened, quick=quick, progress=progress)
    write_profile(bundle, profile, key=key)
    return apply_default_policy(bundle, key=key)


def choose_for_device(bundle: Path, target: Target, *, key: Path | None = None) -> Policy | None:
    """Choose which exits are open by the cost model, for a device that is not at hand; None, and nothing is changed,
    where its target has no data sheet."""
    from eecompile.bench.defaults import apply_default_policy

    return apply_default_policy(bundle, key=key, target=target) if target.bandwidth else None
