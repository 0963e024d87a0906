"""`exits`: a checkpoint becomes a student: exits fitted, gates trained, thresholds calibrated, all without torch."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eecompile.calibrate.calibrate import ERROR, RISK, calibrate_tables
from eecompile.calibrate.documents import MAX_TOKENS, Documents, Split, load_documents
from eecompile.calibrate.fit import Fitted, FittedExit, check_enough_to_fit, fit_adapters
from eecompile.calibrate.gate import auc
from eecompile.calibrate.guarantee import Guarantee, check_enough
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.points import prices, thresholds_along
from eecompile.calibrate.rows import RIDGE
from eecompile.calibrate.small_heads import HeadMatrix
from eecompile.calibrate.student_output import SOURCE, check_output, copy_checkpoint, replacing_student
from eecompile.calibrate.tables import Float, Progress, TokenTable, trace_tables
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.text import TextCodec
from eecompile.schema import CalibrationResult
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.student import Student, open_student

BuildBundle = Callable[[Student, Path], object]

DEFAULT: Final = ExitPlan()
DRAFT_PRECISION: Final = 0.8  # a wrong draft costs time, never correctness


def fit_exits(
    checkpoint: Path, at: Sequence[int], documents: Path, out: Path, *, risk: float = RISK, error: float = ERROR,
    plan: ExitPlan = DEFAULT, build_bundle: BuildBundle, max_tokens: int = MAX_TOKENS,
    limit: int | None = None, seed: int = 0, progress: Progress = lambda stage: None,
) -> dict[str, Any]:  # fmt: skip
    """Write at `out` the checkpoint with fitted and calibrated exits after the layers `at`; return a summary.

    documents: as `load_documents` takes them, cut off at `max_tokens`, at most `limit` of them. plan: gates and head of
    the exits. build_bundle: writes the float32 bundle of a student at a path; called for the plain exits, which are
    fitted on, and for the fitted ones, which are calibrated. Weights are hard-linked where the file system can. What
    stood at `out`, an older student of this kind, is replaced only once all is done.
    Raises UsageError for documents that are too few, exits that cannot be, and an `out` that holds something else.
    """
    layers = sorted(set(at))
    if not layers:
        raise UsageError("no exits are asked for", mend="name the layers after which to exit: --at 18,22,26")
    student = open_student(checkpoint, layers)
    specs = plan.specs(layers)
    data = load_documents(documents, max_tokens=max_tokens, limit=limit)
    check_output(checkpoint, out)
    guarantee = Guarantee.of("ltt", risk, error)
    splits = check_documents(student, data, guarantee)
    with replacing_student(checkpoint, out) as work:
        return _fit_into(
            work, student, plan, specs, data, build_bundle, guarantee=guarantee, splits=splits, seed=seed,
            progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class CalibratedExits:
    """The exits with their draft thresholds, what they say of the path documents, and the calibration."""

    exits: list[ExitSpec]
    path: TokenTable
    result: CalibrationResult


def calibrate_student(
    student: Path, bundle: Path, data: Documents, build_bundle: BuildBundle, *, guarantee: Guarantee,
    splits: Mapping[Split, int], progress: Progress,
) -> CalibratedExits:  # fmt: skip
    """Build the student at `student` as the float32 bundle `bundle`, and calibrate it on the path and test documents.

    A draft threshold lets a wrong draft through in one of five: it costs time, never correctness.
    """
    opened = open_student(student)
    build_bundle(opened, bundle)
    built = Bundle.open(bundle, integrity="size")
    tables = trace_tables(built, data, ("path", "test"), progress)
    path, along = tables["path"], [1 - DRAFT_PRECISION]
    costs = zip(path.exits, prices(built.manifest), strict=True)
    drafts = [thresholds_along(exit_, along, price)[0] for exit_, price in costs]
    result = calibrate_tables(built, data.sha256, path, tables["test"], drafts, guarantee=guarantee, splits=splits)
    specs = zip(opened.exits.schema.exits, drafts, strict=True)
    return CalibratedExits([spec.model_copy(update={"draft": draft}) for spec, draft in specs], path, result)


def _fit_into(
    work: Path, student: Student, plan: ExitPlan, specs: list[ExitSpec], data: Documents, build_bundle: BuildBundle, *,
    guarantee: Guarantee, splits: Mapping[Split, int], seed: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Write the student at work/student, with bundles beside it meanwhile."""
    progress("build the plain exits")
    build_bundle(student, work / "plain")
    bundle = Bundle.open(work / "plain", integrity="size")
    matrix = HeadMatrix.of(student)
    fitted = fit_adapters(bundle, data, plan, matrix, seed=seed, scratch=work, progress=progress)
    del bundle
    shutil.rmtree(work / "plain")

    copy_checkpoint(student.path, work / "student")
    tensors, heads = {**schedule_tensors(student), **_tensors(fitted)}, [head.shape for head in fitted.heads]
    plain = EarlyExit(exits=specs, heads=heads, **student.exits.schedules)
    save_exits(work / "student", plain, tensors)
    progress("build the fitted exits")
    found = calibrate_student(
        work / "student", work / "fitted", data, build_bundle, guarantee=guarantee, splits=splits, progress=progress
    )
    summary = _summary(fitted.exits, found)
    provenance = _provenance(summary, data, len(found.path.documents), seed)
    update = {"exits": found.exits, "calibrations": [found.result], "provenance": provenance}
    save_exits(work / "student", plain.model_copy(update=update), tensors)
    return summary


def _tensors(fitted: Fitted) -> dict[str, Float]:
    tensors = {f"head.{h.shape.name}.{part}": t for h in fitted.heads for part, t in h.tensors.items()}
    for e in fitted.exits:
        parts = {"adapter.weight": e.weight, "adapter.bias": e.bias, **e.gates}
        tensors |= {f"exit.{e.layer}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def schedule_tensors(student: Student) -> dict[str, Float]:
    """What the checkpoint's early_exit.safetensors holds for how layers run, which fitting leaves as it is."""
    loops, store = student.loops, student.exits.store
    names = [] if loops is None else list(loops.factor_shapes(student.own_spec))
    names += [name for cycle in student.cycles for name in cycle.spec.shapes(student.spec.hidden)]
    return {} if store is None else {name: store.read(name) for name in names}


def check_documents(student: Student, data: Documents, guarantee: Guarantee) -> dict[Split, int]:
    """How many documents each split has; raises UsageError where they are too few to fit on, or to show the risk."""
    codec = TextCodec(student.path) if student.tokenizer_files else None
    found = data.counts(codec, vocab=student.spec.vocab, context=student.spec.max_positions)
    check_enough(found, guarantee, data.path, limited=data.cutoff is not None)
    check_enough_to_fit(data, found["fit"])
    return found


def _summary(fitted: Sequence[FittedExit], found: CalibratedExits) -> dict[str, Any]:
    return calibration_summary(found, [{"plain_agreement": round(fit.plain_agreement, 4)} for fit in fitted])


def calibration_summary(found: CalibratedExits, more: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How good the exits are on the path documents, and the point that was chosen. more: what else to say of each."""
    result = found.result
    chosen = None if result.chosen is None else result.path[result.chosen]
    exits = []
    for g, (spec, table) in enumerate(zip(found.exits, found.path.exits, strict=True)):
        gate = auc(table.values["learned"], table.agrees) if "learned" in table.values else None
        exits.append({
            "layer": spec.layer, **more[g],
            "agreement": round(float(table.agrees.mean()), 4), "gate_auc": None if gate is None else round(gate, 4),
            "confident": None if chosen is None else chosen.thresholds[g], "draft": spec.draft,
        })  # fmt: skip
    point = None if chosen is None else chosen.model_dump(exclude={"thresholds"})
    counts = {"test_documents": result.documents, "test_tokens": result.tokens}
    return {"exits": exits, "risk": result.risk, "error": result.error, **counts, "chosen": point}


def _provenance(summary: dict[str, Any], data: Documents, path_tokens: int, seed: int) -> dict[str, Any]:
    """Flat, as early_exit.json has it: where the exits came from, and how good they were on the path documents."""
    facts = {
        "source": SOURCE, "data": data.sha256, "documents": data.count, "max_tokens": data.max_tokens,
        "path_tokens": path_tokens, "test_documents": summary["test_documents"],
        "test_tokens": summary["test_tokens"], "seed": seed, "ridge": RIDGE, "draft_precision": DRAFT_PRECISION,
    }  # fmt: skip
    for exit_ in summary["exits"]:
        facts |= {f"exit.{exit_['layer']}.{k}": exit_[k] for k in ("plain_agreement", "agreement", "gate_auc")}
    return facts
