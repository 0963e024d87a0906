"""`train recurse`: a plain checkpoint's layers are tied into a block that loops, and trained to be the model again.

The loop, losses and data are those of `train distill`; the teacher is the untied checkpoint. As in relaxed recursive
transformers (Bae et al., 2024, section 3) every weight is trained on forward KL from it, and exits at the ends of loops
on KL from the last layer, detached, at a tenth of its weight.
"""

import shutil
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator
from pydantic import model_validator
from typing_extensions import Self

from eecompile.calibrate.student_output import copy_checkpoint
from eecompile.errors import UsageError
from eecompile.student.loops import Loops
from eecompile.student.store import SINGLE
from eecompile.student.student import open_student
from eecompile_training.backbone import Backbone, codec_of, open_backbone
from eecompile_training.begin import begun_exits
from eecompile_training.config import has_key, load_config
from eecompile_training.cycling import CyclesConfig, train_cycles
from eecompile_training.data import Batch, TrainingData, load_data
from eecompile_training.distill import provenance
from eecompile_training.distill_config import DistillConfig, ExitLoss, Losses
from eecompile_training.distillation import Distillation
from eecompile_training.distilled import Distilled, StepPlan
from eecompile_training.exits import write_exits
from eecompile_training.loop import Loop, Progress
from eecompile_training.plots import plot_run
from eecompile_training.recursive import RecursiveModel, load_recursive
from eecompile_training.routed import Routed, RoutedPlan, RouterConfig, evaluate_router, shares_at
from eecompile_training.runs import Run, open_run
from eecompile_training.tying import Init, save_tensors, tie_layers

SOURCE: Final = "eecompile train recurse"


class RecurseConfig(DistillConfig):
    """The config of `train recurse`: that of `train distill`, where the student is the model with tied layers.

    schedule: as in early_exit.json; it runs as many layers as the model has. init: of the block. router: at exits after
    every loop but the last. The teacher is the model.
    """

    schedule: Loops
    init: Init = "average"
    losses: Losses = Losses(task=0.0, last_kl=1.0, exits=ExitLoss(kl=0.1))
    router: RouterConfig | None = None
    parallel: Literal["data"] = "data"

    @model_validator(mode="after")
    def _is_of_tied_layers(self) -> Self:
        if self.student.kind != "same" or self.tune.lora is not None or self.teacher is not None:
            raise ValueError(
                "the student is the model with tied layers, its teacher the model; tune.lora is not for it"
            )
        if self.fsdp:
            raise ValueError("fsdp is for `train distill`: loops of a block share its parameters")
        gates = self.exits.gates or []
        ends = [self.schedule.prelude + n * self.schedule.block for n in range(1, self.schedule.loops)]
        if self.router is None:
            if "router" in gates:
                raise ValueError("the gate router needs a section `router`")
        elif self.exits.at != ends or gates[:1] != ["router"] or self.exits.head != "full":
            raise ValueError(f"with a router exits are at {ends}, have the full head, and the gate router first")
        return self


class Recursion(Distillation):
    """The task: distillation, with a router's capacities and figures where there is one."""

    def begin(self, step: int) -> tuple[Batch, StepPlan]:
        """As Distillation's."""
        batch, plan = super().begin(step)
        if not isinstance(self.module, Routed):
            return batch, plan
        shares = shares_at(self.module.router, len(self.module.exits.schema.exits), step)
        return batch, RoutedPlan(**vars(plan), shares=shares)

    def evaluate(self) -> dict[str, float]:
        """Agreement and cross-entropy of exits and last layer on held-out rows, and what the router makes of them."""
        found = super().evaluate()
        if not isinstance(self.module, Routed):
            return found
        size = self.config.micro or self.config.batch
        routed: dict[str, float] = evaluate_router(self.module, self.data.held_out, self.config.evaluate_rows, size)
        return {**found, **routed}


def train_file(path: Path, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train as the YAML file `path` says; returns what came of it, in the first process (nothing in others)."""
    if has_key(path, "cycles"):
        return train_cycles(load_config(path, CyclesConfig), resume=resume, progress=progress)
    return train_recursion(load_config(path, RecurseConfig), resume=resume, progress=progress)


def train_recursion(config: RecurseConfig, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """Tie the model's layers and train the student in `config.output`. Raises UsageError for layers that cannot be."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    main = accelerator.is_main_process
    told: Progress = progress if main else lambda stage: None
    told("read the data")
    spec = open_student(config.model).spec
    data = load_data(config.data, codec_of(config.model), vocab=spec.vocab, end=spec.eos[0] if spec.eos else None)
    run = open_run(config.output, config, data.sha256, seeds={"seed": config.seed}, resume=resume, writes=main)
    told("tie the layers")
    tied = run.path / "tied"
    with accelerator.main_process_first():
        if main:
            shutil.rmtree(tied, ignore_errors=True)
            tie_layers(config.model, tied, config.schedule, config.init)
        torch.manual_seed(config.seed)
        recursive = load_recursive(tied)
        module = open_module(config, data, tied, recursive, accelerator.device)
    Loop(config, run, Recursion(config, data, module), accelerator, told).train()
    return finish(config, data, run, module, recursive) if main else {}


def open_module(
    config: RecurseConfig, data: TrainingData, tied: Path, recursive: RecursiveModel, device: torch.device
) -> Distilled:
    """The recursive model with its exits, and the checkpoint as its teacher."""
    student = open_student(tied)
    schema = config.exits.schema_with(data.train.frequent)
    if config.router is not None:
        schema = config.router.schema_with_routers(schema)
    exits = begun_exits(schema, tied, config.seed)
    backbone = Backbone(recursive.model, student.spec)
    teacher = open_backbone(config.model).requires_grad_(False).eval().to(device)
    if config.gradient_checkpointing:
        raise UsageError("recursion is not trained with gradient checkpointing", where="gradient_checkpointing")
    common: dict[str, Any] = {"chunk": config.chunk, "frequent": data.train.frequent}
    if config.router is None:
        module = Distilled(backbone, exits, teacher, **common)
    else:
        module = Routed(backbone, exits, teacher, config.router, last=recursive.ends()[-1], **common)
    module.to(device)
    return module


def finish(
    config: RecurseConfig, data: TrainingData, run: Run, module: Distilled, recursive: RecursiveModel
) -> dict[str, Any]:
    """Write the student and the plots, and say what came of the run."""
    temporary = run.path / "student.unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    copy_checkpoint(run.path / "tied", temporary)
    own, factors = recursive.tensors()
    (temporary / SINGLE).unlink()
    save_tensors(temporary / SINGLE, own)
    facts = provenance(config, data) | {"source": SOURCE, "init": config.init}
    update = {"schedule": config.schedule, "provenance": facts}
    module.exits.schema = module.exits.schema.model_copy(update=update)
    write_exits(temporary, module.exits, {name: torch.from_numpy(t) for name, t in factors.items()})
    open_student(temporary)
    run.finish(temporary)
    shutil.rmtree(run.path / "tied")
    metrics = run.read_metrics()
    plot_run(metrics, run.path / "plots")
    measured: dict[str, Any] = next((line for line in reversed(metrics) if "loss" not in line), {})
    return {"student": str(run.student), "rows": len(data.train), **measured}
