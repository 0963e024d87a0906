"""`train exits` for language models: translators, modules, small heads and gates on a frozen backbone."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from eecompile.calibrate.documents import Documents, Split, load_documents
from eecompile.calibrate.exits import calibrate_student, calibration_summary, check_documents, schedule_tensors
from eecompile.calibrate.guarantee import Guarantee
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.student_output import copy_checkpoint
from eecompile.errors import UsageError
from eecompile.pipeline import build_plain
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.student import Student, open_student
from eecompile_training.backbone import Backbone, open_backbone
from eecompile_training.cache import HiddenCache, checkpoint_facts
from eecompile_training.exit_gates import train_gates
from eecompile_training.exit_settings import ExitsConfig
from eecompile_training.exit_start import StartedExits, started_exits
from eecompile_training.exit_states import PARTS, cached_states
from eecompile_training.exit_task import ExitReader, ExitTask, judged_exits
from eecompile_training.exits import TorchExits
from eecompile_training.recursive import load_recursive
from eecompile_training.rows import Pace, Progress, Trainer, finish_run
from eecompile_training.runs import Run, open_run

Float = NDArray[np.float32]
Figures = dict[str, dict[str, float]]
SOURCE: Final = "eecompile train exits"
TRAINED: Final = "trained"


@dataclass(frozen=True)
class ChosenExits:
    """The exits that ship. sources: by layer, "trained" or what training began from. figures: by layer, of both, on
    documents that neither learnt from (exit_task.judged_exits)."""

    exits: TorchExits
    sources: Mapping[int, str]
    figures: Mapping[int, Figures]


def train_decoder(config: ExitsConfig, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """Train, choose, calibrate and write the student of the run; returns a summary. Raises UsageError for exits that
    cannot be and documents that are too few."""
    student = open_student(config.model)
    plan = _plan(config, student)
    data = load_documents(config.data.file, max_tokens=config.data.length, limit=config.data.limit)
    guarantee = Guarantee.of("ltt", config.calibration.risk, config.calibration.error)
    splits = check_documents(student, data, guarantee)
    hashes = {str(config.data.file): data.sha256}
    run = open_run(config.output, config, hashes, seeds={"seed": config.seed}, resume=resume)
    backbone = frozen_backbone(student)
    folder, facts = config.cache_folder or run.path / "cache", checkpoint_facts(config.model)
    caches = cached_states(folder, backbone, config.model, facts, data, config.at, config.cache, progress)
    parts = dict(zip(PARTS, caches, strict=True))
    progress("closed form")
    began = started_exits(config, plan, student, backbone, parts["learn"])
    chosen = _trained(config, began, backbone, parts, run, progress)
    gates = train_gates(
        config.gate_rows, plan, ExitReader(backbone, chosen.exits), parts["gate"], config.seed, progress
    )
    work = run.path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    summary = _write(config, plan, student, chosen, gates, data, work, guarantee, splits, progress)
    finish_run(run, work)
    return summary


def frozen_backbone(student: Student) -> Backbone:
    """The student's model, as its layers run, without gradients, on the accelerator if there is one."""
    if student.loops is None:
        backbone = open_backbone(student.path)
    else:
        backbone = Backbone(load_recursive(student.path).model, student.spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.requires_grad_(False).eval().to(device)
    return backbone


def _plan(config: ExitsConfig, student: Student) -> ExitPlan:
    where = str(config.model)
    if config.adapter == "classifier" or config.pooler or config.calibration.granularity is not None:
        mend = "leave out `adapter: classifier`, `pooler` and `granularity`"
        raise UsageError("classifiers at exits are for encoders", where=where, mend=mend)
    if student.cycles or isinstance(student.spec, EncoderDecoderSpec):
        raise UsageError("exits of this model cannot be trained, only fitted", where=where, mend="`eecompile exits`")
    if outside := [n for n in config.at if not 1 <= n < student.spec.layers]:
        what = f"exit {outside[0]} is not before the last of {student.spec.layers} layers"
        raise UsageError(what, where=where, mend=f"`at` lists numbers from 1 to {student.spec.layers - 1}")
    gates = config.gates or ExitPlan().gates
    return ExitPlan.of(gates, config.head, config.rank, config.shortlist)


def _trained(
    config: ExitsConfig, began: StartedExits, backbone: Backbone, parts: Mapping[str, HiddenCache], run: Run,
    progress: Progress,
) -> ChosenExits:  # fmt: skip
    """Every exit as the better of what it was before training and after."""
    exits = began.exits.to(backbone.head.weight.device)
    start, judge = copy.deepcopy(exits), parts["judge"]
    if config.steps and exits.tensors():
        task = ExitTask(ExitReader(backbone, exits), parts["learn"], judge, config)
        pace = Pace(
            config.steps, config.batch, config.seed, config.log_every, config.evaluate_every, config.checkpoint_every
        )
        Trainer(run, progress).train(task, pace, config.optimizer)
    before, after = (judged_exits(ExitReader(backbone, e), judge, judge.rows) for e in (start, exits))
    return _better(config, began, start, exits, before, after)


def _better(
    config: ExitsConfig, began: StartedExits, start: TorchExits, exits: TorchExits,
    before: Mapping[int, dict[str, float]], after: Mapping[int, dict[str, float]],
) -> ChosenExits:  # fmt: skip
    """By agreement, then KL; exits that share a trained head are chosen together."""

    def score(figures: Mapping[int, dict[str, float]], layers: Sequence[int]) -> tuple[float, float]:
        return sum(figures[n]["agreement"] for n in layers), -sum(figures[n]["kl"] for n in layers)

    groups = [config.at] if config.head == "low_rank" else [[n] for n in config.at]
    sources: dict[int, str] = dict(began.sources)
    tensors = dict(start.tensors())
    for layers in groups:
        if score(after, layers) > score(before, layers):
            sources |= dict.fromkeys(layers, TRAINED)
            names = [n for n in tensors if n.startswith(tuple(f"exit.{layer}." for layer in layers))]
            names += [n for n in tensors if n.startswith("head.") and config.head == "low_rank"]
            tensors |= {name: exits.tensor(name) for name in names}
    figures = {n: {began.sources[n]: before[n], TRAINED: after[n]} for n in config.at}
    chosen = TorchExits(exits.schema, exits.spec, {name: t.detach() for name, t in tensors.items()})
    return ChosenExits(chosen.requires_grad_(False), sources, figures)


def _write(
    config: ExitsConfig, plan: ExitPlan, student: Student, chosen: ChosenExits, gates: Mapping[str, Float],
    data: Documents, work: Path, guarantee: Guarantee, splits: Mapping[Split, int], progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Write the student at work/student, calibrated; returns the summary."""
    copy_checkpoint(student.path, work / "student")
    tensors = {name: t.detach().float().cpu().numpy() for name, t in chosen.exits.tensors().items()}
    tensors = {**schedule_tensors(student), **tensors, **gates}
    update = {"adapter": config.adapter or "affine"}
    specs = [ExitSpec.model_validate(s.model_dump() | update) for s in plan.specs(config.at)]
    schema = EarlyExit(exits=specs, heads=chosen.exits.schema.heads, **student.exits.schedules)
    save_exits(work / "student", schema, tensors)
    progress("build the trained exits")
    found = calibrate_student(
        work / "student", work / "trained", data, build_plain, guarantee=guarantee, splits=splits, progress=progress
    )
    more = [{"is": chosen.sources[n], **chosen.figures[n]} for n in config.at]
    summary = calibration_summary(found, more)
    provenance: dict[str, Any] = {"source": SOURCE, "data": data.sha256, "seed": config.seed, "steps": config.steps}
    for n, exit_ in zip(config.at, summary["exits"], strict=True):
        provenance |= {f"exit.{n}.is": chosen.sources[n], f"exit.{n}.agreement": exit_["agreement"]}
    fields = {"exits": found.exits, "calibrations": [found.result], "provenance": provenance}
    save_exits(work / "student", schema.model_copy(update=fields), tensors)
    return summary
