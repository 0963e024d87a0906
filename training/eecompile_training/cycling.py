"""`train recurse` with `cycles`: gates that send a row through a block once more, and the vector that they add to it.

The model is frozen and every row runs each block twice, the second time on its result plus the "think" vector; both
results are held against a layer of a teacher (cyclic.py), so that the gate learns how good a result is and the vector
to make the next one better. A deployed row runs again only below its threshold, and what is behind the block reads it.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from eecompile import contract as c
from eecompile.calibrate.student_output import copy_checkpoint
from eecompile.errors import UsageError
from eecompile.student.cycles import CycleSpec
from eecompile.student.student import Student, open_student
from eecompile_training.backbone import Backbone, codec_of, open_backbone
from eecompile_training.cyclic import cycle_loss, sinkhorn_distance
from eecompile_training.data import Batch, TrainingData, load_data, rows_of_step
from eecompile_training.exits import read_exits, write_exits
from eecompile_training.loop import Loop, Progress
from eecompile_training.plots import plot_run
from eecompile_training.runs import Run, open_run
from eecompile_training.settings import RunConfig

SOURCE: Final = "eecompile train recurse"


class TrainedCycle(CycleSpec):
    """A block as early_exit.json has it, and the teacher's layer (from 1) that its result is held against."""

    teacher_layer: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]


class CyclesConfig(RunConfig):
    """The config of `train recurse` where it has `cycles`. teacher: of the same width (None: the model itself)."""

    teacher: Path | None = None
    cycles: Annotated[list[TrainedCycle], Field(min_length=1, max_length=c.MAX_EXITS)]


class Cycling(nn.Module):
    """Gates and think vectors of a frozen model, by the names of their tensors."""

    def __init__(self, backbone: Backbone, teacher: Backbone, cycles: list[TrainedCycle]) -> None:
        super().__init__()
        self.cycles, self._models = cycles, (backbone, teacher)
        size = backbone.spec.hidden
        shapes = {name: shape for cycle in cycles for name, shape in cycle.shapes(size).items()}
        self.names = list(shapes)
        self.values = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes.values()])
        self._given: dict[int, tuple[Any, Any]] = {}
        for cycle in cycles:
            for n in range(cycle.first, cycle.layer):
                backbone.layers[n].register_forward_pre_hook(partial(self._note, n), with_kwargs=True)

    def tensor(self, cycle: TrainedCycle, part: str) -> Tensor:
        """One of a cycle's tensors."""
        found: Tensor = self.values[self.names.index(f"cycle.{cycle.layer}.{part}")]
        return found

    def gate(self, cycle: TrainedCycle, hidden: Tensor) -> Tensor:
        """How good a block's results [B, T, D] are, from 0 to 1."""
        score = hidden @ self.tensor(cycle, "weight") + self.tensor(cycle, "bias")
        return torch.sigmoid(score)

    def forward(self, batch: Batch, plan: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some rows of a step of `plan` rows, and its parts: distances and gates of both runs."""
        backbone, teacher = self._models
        with torch.no_grad():
            states = backbone(batch.ids, [cycle.layer for cycle in self.cycles])
            wanted = teacher(batch.ids, [cycle.teacher_layer for cycle in self.cycles])
        given, self._given = self._given, {}
        total, parts = batch.mask.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        for cycle in self.cycles:
            once = states.hidden[cycle.layer]
            again = self._again(cycle, once + self.tensor(cycle, "think"), given)
            for name, hidden in (("once", once), ("again", again)):
                distance = sinkhorn_distance(hidden, wanted.hidden[cycle.teacher_layer], batch.mask)
                gate = self.gate(cycle, hidden)
                total = total + cycle_loss(gate, distance, batch.mask) / plan
                share = (gate * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)
                parts |= {f"cycle_{cycle.layer}.{name}": distance.sum().detach() / plan}
                parts |= {f"cycle_{cycle.layer}.gate_{name}": share.sum().detach() / plan}
        return total, parts

    def _again(self, cycle: TrainedCycle, hidden: Tensor, given: dict[int, tuple[Any, Any]]) -> Tensor:
        """The block on other rows, with the masks and positions that it was given."""
        for n in range(cycle.first, cycle.layer):
            args, kwargs = given[n]
            out = self._models[0].layers[n](hidden, *args, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        self._given = {}
        return hidden

    def _note(self, number: int, module: Any, args: Any, kwargs: Any) -> None:
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self._given[number] = (args[1:] if args else (), rest)


class CyclesTask:
    """What the loop trains."""

    def __init__(self, config: CyclesConfig, data: TrainingData, module: Cycling) -> None:
        self.config, self.data, self.module = config, data, module

    def groups(self) -> list[dict[str, Any]]:
        """Gates and vectors."""
        return [{"params": list(self.module.parameters()), "scale": 1.0}]

    def begin(self, step: int) -> tuple[Batch, int]:
        """A step's rows, and how many there are."""
        rows = rows_of_step(len(self.data.train), self.config.batch, self.config.seed, step)
        return self.data.train.batch(rows), len(rows)

    def part(self, plan: int, start: int, stop: int) -> int:
        """The same."""
        return plan

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean distance and gate of both runs on held-out rows."""
        rows, sums = min(self.config.evaluate_rows, len(self.data.held_out)), dict[str, float]()
        device = next(self.module.parameters()).device
        for start in range(0, rows, self.config.batch):
            batch = self.data.held_out.batch(range(start, min(start + self.config.batch, rows))).to(device)
            for name, value in self.module(batch, rows)[1].items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"held_out.{name}": value for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def restore(self, state: Any) -> None:
        """Nothing to take back."""


def train_cycles(config: CyclesConfig, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """Train the gates and write the student; returns what came of it, in the first process."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    main, student = accelerator.is_main_process, open_student(config.model)
    told: Progress = progress if main else lambda stage: None
    end = student.spec.eos[0] if student.spec.eos else None
    data = load_data(config.data, codec_of(config.model), vocab=student.spec.vocab, end=end)
    models = [_frozen(path, accelerator.device) for path in (config.model, config.teacher or config.model)]
    _check(config, student, models[1])
    run = open_run(config.output, config, data.sha256, seeds={"seed": config.seed}, resume=resume, writes=main)
    module = Cycling(models[0], models[1], config.cycles)
    module.to(accelerator.device)
    Loop(config, run, CyclesTask(config, data, module), accelerator, told).train()
    return _finish(config, student, run, module) if main else {}


def _frozen(path: Path, device: torch.device) -> Backbone:
    backbone = open_backbone(path)
    backbone.requires_grad_(False).eval().to(device)
    return backbone


def _check(config: CyclesConfig, student: Student, teacher: Backbone) -> None:
    where = str(config.model)
    if student.loops is not None:
        raise UsageError("a schedule of loops and cyclic gates do not go together", where=where)
    if teacher.spec.hidden != student.spec.hidden or teacher.spec.vocab != student.spec.vocab:
        raise UsageError("the teacher is of another width or vocabulary", where="teacher", mend="take one of the same")
    for cycle in config.cycles:
        if cycle.layer > student.spec.layers or cycle.teacher_layer > teacher.spec.layers:
            mend = f"layers are 1 to {student.spec.layers}, the teacher's 1 to {teacher.spec.layers}"
            raise UsageError(f"there is no layer {cycle.layer} or {cycle.teacher_layer}", where="cycles", mend=mend)


def _finish(config: CyclesConfig, student: Student, run: Run, module: Cycling) -> dict[str, Any]:
    """Write the student; what its exits were calibrated with is another model now."""
    temporary = run.path / "student.unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    copy_checkpoint(student.path, temporary)
    exits = read_exits(student)
    cycles = [CycleSpec.model_validate(cycle.model_dump(exclude={"teacher_layer"})) for cycle in config.cycles]
    facts = {"source": SOURCE, "steps": config.steps, "seed": config.seed}
    update = {"cycles": cycles, "calibrations": [], "provenance": facts}
    exits.schema = exits.schema.model_copy(update=update)
    write_exits(temporary, exits, {n: v.detach() for n, v in zip(module.names, module.values, strict=True)})
    open_student(temporary)
    run.finish(temporary)
    metrics = run.read_metrics()
    plot_run(metrics, run.path / "plots")
    return {"student": str(run.student), **{k: v for k, v in metrics[-1].items() if k != "step"}}
