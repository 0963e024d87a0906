"""The models of a distillation before its first step: student, exits, teacher, projections."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eecompile.errors import UsageError
from eecompile.student.exits import EarlyExit
from eecompile.student.student import Student, open_student
from eecompile_training.backbone import Backbone, codec_of, open_backbone, save_backbone
from eecompile_training.data import TrainingData
from eecompile_training.distill_config import DistillConfig, SameStudent
from eecompile_training.distilled import Distilled
from eecompile_training.exits import GATES, TorchExits, new_exits, read_exits
from eecompile_training.layer_maps import mapped_layers
from eecompile_training.lora import add_lora
from eecompile_training.select import new_student


def open_module(config: DistillConfig, data: TrainingData, device: torch.device) -> tuple[Distilled, Any]:
    """What is trained, and what `merge_lora` takes (None without LoRA). The same in every process."""
    torch.manual_seed(config.seed)
    eager = any(losses.attention is not None for losses in config.stages)
    backbone, exits = open_begun(config, data, eager)
    teacher = open_teacher(config, backbone, eager)
    projected = [] if teacher is None else projected_layers(config, backbone, teacher, exits.schema)
    lora = None if config.tune.lora is None else add_lora(backbone.model, config.tune, config.seed)
    if config.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    frequent = data.train.frequent
    module = Distilled(backbone, exits, teacher, projected=projected, chunk=config.chunk, frequent=frequent)
    if teacher is not None:
        teacher.to(device)
    return module.to(device), lora


def open_begun(config: DistillConfig, data: TrainingData, eager: bool) -> tuple[Backbone, TorchExits]:
    """The student that the config asks for, and its exits, before training."""
    schema = config.exits.schema_with(data.train.frequent)
    if isinstance(config.student, SameStudent):
        return open_backbone(config.model, eager=eager), begun_exits(
            schema, config.model, config.seed, own=config.exits.start == "checkpoint"
        )
    with tempfile.TemporaryDirectory(prefix="eecompile-student-") as folder:
        first = Path(folder) / "student"
        whole = open_backbone(config.model)
        save_backbone(new_student(config.student, whole.model, data.train), config.model, first)
        return open_backbone(first, eager=eager), begun_exits(schema, first, config.seed)


def begun_exits(schema: EarlyExit, path: Path, seed: int, *, own: bool = False) -> TorchExits:
    """Exits for the checkpoint at `path`, new ones or with the tensors of its `own`; raises UsageError for one that is
    not before the last layer, or whose adapter the checkpoint lacks."""
    student = open_student(path)
    layers = student.spec.layers
    outside = [e.depth for e in schema.exits if e.depth >= layers]
    if outside:
        mend = f"exits are after 1 to {layers - 1} layers"
        raise UsageError(f"exit {outside[0]} is not before the last of {layers} layers", where="exits.at", mend=mend)
    exits = new_exits(schema, student, seed)
    return exits_of_checkpoint(exits, student) if own else exits


def exits_of_checkpoint(exits: TorchExits, student: Student) -> TorchExits:
    """The same with every tensor that the checkpoint's own exits have; gates and heads that it lacks begin anew."""
    new, own = exits.tensors(), read_exits(student).tensors()
    parts = {name: name.split(".")[2] for name in new if name.startswith("exit.")}
    needed = [name for name, part in parts.items() if part not in GATES]
    taken = {name: own[name] for name in new if name in own and own[name].shape == new[name].shape}
    if lacking := [name for name in needed if name not in taken]:
        mend = "fit the same exits with `eecompile exits` first, or leave exits.start out"
        raise UsageError(f"the checkpoint has no {lacking[0]}", where=str(student.path), mend=mend)
    return TorchExits(exits.schema, student.spec, {**new, **taken})


def open_teacher(config: DistillConfig, backbone: Backbone, eager: bool) -> Backbone | None:
    """The frozen teacher, None where nothing asks for one; raises UsageError for one that the student cannot follow."""
    if not any(losses.needs_teacher for losses in config.stages):
        return None
    teacher = open_backbone(config.teacher or config.model, eager=eager)
    ours, theirs = backbone.spec, teacher.spec
    if ours.vocab != theirs.vocab:
        what = f"the teacher has {theirs.vocab} tokens, the model {ours.vocab}"
        raise UsageError(what, where="teacher", mend="both need the same tokenizer")
    codecs = [codec_of(path) for path in (config.model, config.teacher or config.model)]
    if None not in codecs and codecs[0].tokenizer.get_vocab() != codecs[1].tokenizer.get_vocab():  # type: ignore[union-attr]
        raise UsageError("the teacher's tokenizer is another", where="teacher", mend="both need the same tokenizer")
    if eager and ours.heads != theirs.heads:
        what = f"the student has {ours.heads} heads, the teacher {theirs.heads}"
        raise UsageError(what, where="losses.attention", mend="leave the attention loss out")
    teacher.requires_grad_(False)
    teacher.eval()
    return teacher


def projected_layers(config: DistillConfig, backbone: Backbone, teacher: Backbone, schema: EarlyExit) -> Sequence[int]:
    """The layers whose states need a projection to the teacher's width."""
    found: set[int] = set()
    for hidden in [losses.hidden for losses in config.stages]:
        if hidden is not None and hidden.of == "teacher" and teacher.spec.hidden != backbone.spec.hidden:
            found |= set(mapped_layers(hidden.layers, schema, backbone.spec.layers, own=False))
    return sorted(found)
