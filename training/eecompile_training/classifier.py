"""`train distill` of an encoder with a classifier: the model and its exits (DeeBERT, PABEE), with labels or without."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eecompile.errors import UsageError
from eecompile.student.encoder import EncoderSpec
from eecompile.student.encoder_student import open_encoder
from eecompile.student.exits import ExitSpec
from eecompile_training.backbone import EncoderBackbone, codec_of, open_encoder_backbone
from eecompile_training.classifier_data import ClassBatch, ClassData, load_class_data
from eecompile_training.curricula import dropout_rates, dropped_layers, enabled_exits, exit_weights, warmed
from eecompile_training.data import IGNORED, rows_of_step
from eecompile_training.distill_config import DistillConfig, Losses, SameStudent
from eecompile_training.exits import TorchExits, new_classifier_exits
from eecompile_training.tuning import tuned_encoder


@dataclass(frozen=True)
class ClassPlan:
    """What a step does: losses, the weights of the exits that are on (by number) and of the last layer, what counts in
    the whole batch (all, and those with a label), and the layers that these rows skip, bool [L, B]."""

    losses: Losses
    weights: Mapping[int, float]
    last: float
    counted: int
    labelled: int
    dropped: Tensor | None


class Classifier(nn.Module):
    """Encoder and exits; its `forward` is the loss of some rows of a step. The teacher is no part of it."""

    def __init__(self, backbone: EncoderBackbone, exits: TorchExits, teacher: EncoderBackbone | None) -> None:
        super().__init__()
        self.backbone, self.exits, self._teacher = backbone, exits, (teacher,)

    def forward(self, batch: ClassBatch, plan: ClassPlan) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of these rows, and its parts, unweighted and without gradient."""
        losses, teacher = plan.losses, self._teacher[0]
        exits = {i: self.exits.schema.exits[i] for i in plan.weights}
        last, found = self.logits(batch, exits, plan.dropped)
        theirs = last.detach()
        if losses.needs_teacher:
            assert teacher is not None
            with torch.no_grad():
                theirs = teacher.logits(teacher(batch.ids, batch.mask, batch.types).finished[batch.counted])
        terms = [("last", last, losses.task * plan.last, losses.last_kl, losses.temperature, theirs)]
        if losses.exits is not None:
            e, given = losses.exits, theirs if losses.exits.of == "teacher" else last.detach()
            terms += [
                (f"exit_{exits[i].layer}", found[i], w * e.ce, w * e.kl, e.temperature, given)
                for i, w in plan.weights.items()
            ]
        total, parts = last.new_zeros(()), dict[str, Tensor]()
        for name, logits, ce, kl, temperature, given in terms:
            if ce:
                parts[f"{name}.ce"] = self.label_loss(logits, batch.targets[batch.counted]) / plan.labelled
                total = total + ce * parts[f"{name}.ce"]
            if kl:
                parts[f"{name}.kl"] = self.divergence(logits, given, temperature) / plan.counted
                total = total + kl * parts[f"{name}.kl"]
        return total, {name: part.detach() for name, part in parts.items()}

    def logits(
        self, batch: ClassBatch, exits: Mapping[int, ExitSpec], dropped: Tensor | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [N, C] of the last layer and of some exits, of what is classified."""
        at = sorted({e.layer for e in exits.values()})
        states = self.backbone(batch.ids, batch.mask, batch.types, at, dropped=dropped)
        own = self.backbone.logits
        rows = {i: states.hidden[e.layer][batch.counted] for i, e in exits.items()}
        found = {i: self.exits.class_logits(e, rows[i], own) for i, e in exits.items()}
        return own(states.finished[batch.counted]), found

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum of cross-entropies against labels [N], or of squared errors of a regression, where there is one."""
        if self.backbone.spec.task == "regression":
            return ((logits[:, 0] - targets).square() * (targets != IGNORED)).sum()
        return functional.cross_entropy(logits, targets.long(), ignore_index=IGNORED, reduction="sum")

    def divergence(self, logits: Tensor, given: Tensor, temperature: float) -> Tensor:
        """The sum of T^2 KL(given || logits), or of squared differences of a regression."""
        if self.backbone.spec.task == "regression":
            return (logits - given).square().sum()
        ours, theirs = (functional.log_softmax(z / temperature, dim=-1) for z in (logits, given))
        return temperature**2 * functional.kl_div(ours, theirs, log_target=True, reduction="sum")


@dataclass
class Classification:
    """The task that `loop.py` trains."""

    config: DistillConfig
    data: ClassData
    module: Classifier

    def __post_init__(self) -> None:
        self._stage = -1

    def groups(self) -> list[dict[str, Any]]:
        """Backbone, and exits."""
        o, m = self.config.optimizer, self.module
        old = {id(p): p for tune in self.config.tunes for p in tuned_encoder(m.backbone, tune)}
        scale = 1.0 if o.exits_lr is None else o.exits_lr / o.lr
        groups = [{"params": list(old.values()), "scale": 1.0}, {"params": [*m.exits.parameters()], "scale": scale}]
        return [group for group in groups if group["params"]]

    def begin(self, step: int) -> tuple[ClassBatch, ClassPlan]:
        """The rows of a step and what becomes of them."""
        config, stage = self.config, self._switch(step)
        losses, schema = config.stages[stage], self.module.exits.schema
        rows = rows_of_step(len(self.data.train), config.batch, config.seed, step)
        batch, total = self.data.train.batch(rows), self.module.backbone.spec.layers
        weights, last = dict[int, float](), 1.0
        if losses.exits is not None:
            e, count = losses.exits, len(schema.exits)
            enabled = enabled_exits(config.curriculum, count, step, config.steps)
            found, last = exit_weights(
                e.scale, [x.layer for x in schema.exits], total, s=e.s, weights=e.weights or (), enabled=enabled
            )
            share = warmed(step, e.warmup, e.warmup_shape)
            weights = {i: found[i] * share for i in enabled}
        dropped = None
        if config.layer_dropout is not None:
            rates = dropout_rates(config.layer_dropout, total, step, config.steps)
            dropped = torch.from_numpy(dropped_layers(rates, range(len(rows)), config.seed, step))
        labelled = int((batch.targets[batch.counted] != IGNORED).sum())
        return batch, ClassPlan(losses, weights, last, max(1, int(batch.counted.sum())), max(1, labelled), dropped)

    def part(self, plan: ClassPlan, start: int, stop: int) -> ClassPlan:
        """The same for some of the rows."""
        if plan.dropped is None:
            return plan
        device = next(self.module.parameters()).device
        return replace(plan, dropped=plan.dropped[:, start:stop].to(device))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """ "<exit>.agreement" with the last layer (a regression: "<exit>.error", the mean difference), and ".accuracy"
        where there are labels, on held-out texts."""
        module, rows, was = self.module, self.data.held_out, self.module.training
        module.eval()
        sums: dict[str, float] = {}
        count = labelled = 0
        exits = dict(enumerate(module.exits.schema.exits))
        most = min(self.config.evaluate_rows, len(rows))
        for start in range(0, most, self.config.batch):
            batch = rows.batch(range(start, min(start + self.config.batch, most)))
            batch = batch.to(next(module.parameters()).device)
            last, found = module.logits(batch, exits)
            targets = batch.targets[batch.counted]
            count, labelled = count + len(targets), labelled + int((targets != IGNORED).sum())
            named = {"last": last, **{f"exit_{e.layer}": found[i] for i, e in exits.items()}}
            for name, logits in named.items():
                for measure, value in _measured(module.backbone.spec, logits, last, targets).items():
                    sums[f"{name}.{measure}"] = sums.get(f"{name}.{measure}", 0.0) + value
        module.train(was)
        counts = {"agreement": count, "error": count, "accuracy": labelled}
        return {k: v / counts[k.rpartition(".")[2]] for k, v in sums.items() if counts[k.rpartition(".")[2]]}

    def state(self) -> dict[str, Any]:
        """Nothing that steps do not say."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    def _switch(self, step: int) -> int:
        """Say which stage a step is of, and give a gradient to what that stage trains."""
        stage = self.config.stage_of(step)
        if stage != self._stage:
            self._stage, tune = stage, self.config.tunes[stage]
            self.module.requires_grad_(False)
            for parameter in tuned_encoder(self.module.backbone, tune):
                parameter.requires_grad_(True)
            self.module.exits.requires_grad_(tune.exits)
            self.module.train(tune.backbone)
        return stage


def _measured(spec: EncoderSpec, logits: Tensor, last: Tensor, targets: Tensor) -> dict[str, float]:
    """Sums over what is classified."""
    if spec.task == "regression":
        return {"error": float((logits - last).abs().sum())}
    best, right = logits.argmax(-1), targets.long()
    return {
        "agreement": float((best == last.argmax(-1)).sum()),
        "accuracy": float(((best == right) & (right != IGNORED)).sum()),
    }


def open_classifier(config: DistillConfig, device: torch.device) -> tuple[Classifier, ClassData]:
    """What is trained, and the texts. Raises UsageError for what an encoder cannot have, and missing labels."""
    _check(config)
    student, backbone = open_encoder(config.model), open_encoder_backbone(config.model)
    spec = student.spec
    schema = config.exits.schema_with(lambda n: [], spec.task)
    if outside := [e.layer for e in schema.exits if e.layer >= spec.layers]:
        what = f"exit {outside[0]} is not before the last of {spec.layers} layers"
        raise UsageError(what, where="exits.at", mend=f"exits are after 1 to {spec.layers - 1} layers")
    pad = int(backbone.model.config.pad_token_id or 0)
    data = load_class_data(config.data, codec_of(config.model), spec, pad)
    supervised = any(s.task or (s.exits is not None and s.exits.ce) for s in config.stages)
    if supervised and not data.train.labelled:
        mend = "give labels, or set losses.task and losses.exits.ce to 0 and losses.exits.kl to 1"
        raise UsageError("texts have no labels", where=str(config.data.files[0]), mend=mend)
    teacher = None
    if any(losses.needs_teacher for losses in config.stages):
        teacher = open_encoder_backbone(config.teacher or config.model).to(device).requires_grad_(False).eval()
        if teacher.spec.labels != spec.labels:
            raise UsageError("the teacher has other labels", where="teacher", mend="both need the same")
    torch.manual_seed(config.seed)
    return Classifier(backbone, new_classifier_exits(schema, student), teacher).to(device), data


def _check(config: DistillConfig) -> None:
    """Raise UsageError for parts of the config that are for language models."""
    able = {"norm", "affine", "classifier"}
    wrong = [] if config.exits.adapter in able else [f"exits.adapter {config.exits.adapter}"]
    wrong += [] if isinstance(config.student, SameStudent) else ["student"]
    wrong += [] if config.tune.lora is None else ["tune.lora"]
    wrong += ["fsdp"] if config.fsdp else []
    for s in config.stages:
        parts = {"hidden": s.hidden, "attention": s.attention, "to_final": s.to_final, "gates": s.gates}
        wrong += [f"losses.{name}" for name, part in parts.items() if part]
        wrong += ["losses.exits.layers"] if s.exits is not None and s.exits.layers != "exits" else []
    if wrong:
        raise UsageError(f"{wrong[0]} is not for an encoder", where=str(config.model), mend="leave it out")
