"""`train exits` for encoders: classifiers at exits of a frozen backbone, and their calibration."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.classifier import calibrate_classifier
from eecompile.calibrate.classifier_exits import MIN_DOCUMENTS, plain_start
from eecompile.calibrate.guarantee import Guarantee, check_enough
from eecompile.calibrate.student_output import copy_checkpoint
from eecompile.calibrate.text_documents import TextDocuments, load_text_documents
from eecompile.errors import UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime.bundle import Bundle
from eecompile.schema import CalibrationResult
from eecompile.shapes import gates_of, task_fault
from eecompile.student.encoder_student import EncoderStudent, open_encoder
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile_training.cache import HiddenCache, checkpoint_facts
from eecompile_training.classifier_states import cached_texts
from eecompile_training.classifier_task import Classifier, ClassifierTask, closed_form, judged, own_classifier
from eecompile_training.exit_settings import ExitsConfig
from eecompile_training.rows import Pace, Progress, Trainer, finish_run
from eecompile_training.runs import Run, open_run

Float = NDArray[np.float32]
SOURCE: Final = "eecompile train exits"


@dataclass(frozen=True)
class ChosenExit:
    """What an exit ships with: its tensors by part, whether they were `trained` or are the closed-form fit, and the
    figures of both (classifier_task.judged) on documents that neither saw."""

    layer: int
    tensors: Mapping[str, Float]
    source: str
    figures: Mapping[str, Mapping[str, float]]


def train_classifier(config: ExitsConfig, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """Train, choose, calibrate and write the student of the run; returns a summary. Raises UsageError for exits that
    cannot be and documents that are too few."""
    _check_config(config)
    student = open_encoder(config.model, config.at)
    documents = load_text_documents(config.data.file, limit=config.data.limit)
    _check(config, student, documents)
    data = {str(config.data.file): documents.sha256}
    run = open_run(config.output, config, data, seeds={"seed": config.seed}, resume=resume)
    work = run.path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    progress("build the plain exits")
    build_plain(student, work / "plain")
    plain = Bundle.open(work / "plain", integrity="size")
    facts = checkpoint_facts(config.model)
    folder = config.cache_folder or run.path / "cache"
    parts = cached_texts(folder, plain, facts, documents, config.cache, progress)
    exits = _trained(config, student, parts, run, progress)
    result = _write(config, student, exits, work, progress)
    finish_run(run, work)
    return _summary(exits, result)


def _check_config(config: ExitsConfig) -> None:
    if config.adapter not in (None, "classifier") or config.head != "full":
        mend = "leave `adapter` and `head` out"
        raise UsageError("an encoder's exits are classifiers of their own", where=str(config.model), mend=mend)
    if config.target == "ce":
        raise UsageError("an encoder's exits learn from the last layer alone", mend="leave `target` at kl")


def _check(config: ExitsConfig, student: EncoderStudent, documents: TextDocuments) -> None:
    counts, limited = documents.counts(), documents.cutoff is not None
    guarantee = Guarantee.of("ltt", config.calibration.risk, config.calibration.error)
    check_enough(counts, guarantee, documents.path, limited=limited)
    if counts["fit"] < MIN_DOCUMENTS:
        what = f"fewer than {MIN_DOCUMENTS} documents are for fitting"
        raise UsageError(what, where=str(config.data.file), mend="give more")
    specs = [_spec(e, config) for e in student.exits.schema.exits]
    if reason := task_fault(specs, [], student.spec.task):
        mend = f"gates of a {student.spec.task}: {', '.join(gates_of(student.spec.task))}"
        raise UsageError(reason, where=str(config.model), mend=mend)
    if config.pooler and student.spec.pooler is None:
        raise UsageError("the model has no pooler", where=str(config.model), mend="leave `pooler` out")


def _trained(
    config: ExitsConfig, student: EncoderStudent, parts: Sequence[HiddenCache], run: Run, progress: Progress
) -> list[ChosenExit]:
    """Every exit's better classifier."""
    spec, final = student.spec, own_classifier(student)
    fitted = closed_form(student, parts[0], plain_start(student))
    starts = [final.tensors()] * len(fitted) if config.pooler else fitted
    task = ClassifierTask(
        student, [Classifier(spec, t) for t in starts], parts, config.temperature, config.evaluate_rows
    )
    pace = Pace(
        config.steps, config.batch, config.seed, config.log_every, config.evaluate_every, config.checkpoint_every
    )
    Trainer(run, progress).train(task, pace, config.optimizer)
    chosen = []
    for g, (layer, trained) in enumerate(zip(config.at, task.modules, strict=True)):
        assert isinstance(trained, Classifier)
        both = {"closed form": Classifier(spec, fitted[g]), "trained": trained}
        figures = {name: judged(m, final, parts[1], g, parts[1].rows) for name, m in both.items()}
        best = max(figures, key=lambda name: (figures[name]["agreement"], -figures[name]["kl"]))
        chosen.append(ChosenExit(layer, both[best].tensors(), best, figures))
    return chosen


def _write(
    config: ExitsConfig, student: EncoderStudent, exits: Sequence[ChosenExit], work: Path, progress: Progress
) -> CalibrationResult:
    """Write the student at work/student, calibrated."""
    copy_checkpoint(student.path, work / "student")
    specs = [_spec(e, config) for e in student.exits.schema.exits]
    tensors = {f"exit.{e.layer}.{part}": t for e in exits for part, t in e.tensors.items()}
    save_exits(work / "student", EarlyExit(exits=specs), tensors)
    progress("build the trained exits")
    build_plain(open_encoder(work / "student"), work / "trained")
    how = config.calibration
    result = calibrate_classifier(
        Bundle.open(work / "trained", integrity="size"), config.data.file, granularity=how.granularity, risk=how.risk,
        error=how.error, limit=config.data.limit, progress=progress,
    )  # fmt: skip
    schema = EarlyExit(exits=specs, calibrations=[result], provenance=_provenance(config, exits, result))
    save_exits(work / "student", schema, tensors)
    return result


def _spec(exit_: ExitSpec, config: ExitsConfig) -> ExitSpec:
    return exit_.model_copy(update={"adapter": "classifier", "gates": config.gates or exit_.gates})


def _provenance(config: ExitsConfig, exits: Sequence[ChosenExit], result: CalibrationResult) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": SOURCE, "data": result.data, "test_documents": result.documents, "test_tokens": result.tokens,
        "seed": config.seed, "steps": config.steps,
    }  # fmt: skip
    for e in exits:
        facts[f"exit.{e.layer}.is"] = e.source
        facts |= {f"exit.{e.layer}.{k}": round(v, 4) for k, v in e.figures[e.source].items()}
    return facts


def _summary(exits: Sequence[ChosenExit], result: CalibrationResult) -> dict[str, Any]:
    chosen = None if result.chosen is None else result.path[result.chosen].model_dump(mode="json")
    figures = [{"layer": e.layer, "is": e.source, **e.figures} for e in exits]
    return {"exits": figures, "risk": result.risk, "test_documents": result.documents, "chosen": chosen}
