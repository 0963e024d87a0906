"""The steps of a distillation: rows, which exits are on and how much they weigh, layer maps, what has a gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from eecompile.errors import UsageError
from eecompile_training.backbone import Backbone
from eecompile_training.curricula import dropout_rates, dropped_layers, enabled_exits, exit_weights, warmed
from eecompile_training.data import Batch, TrainingData, rows_of_step
from eecompile_training.distill_config import AttentionLoss, DistillConfig, ExitLoss, HiddenLoss
from eecompile_training.distilled import Distilled, Point, StepPlan
from eecompile_training.evaluate import evaluate_exits
from eecompile_training.layer_maps import dynamic_map, fixed_map, mapped_layers
from eecompile_training.sharding import apart
from eecompile_training.tuning import tuned

MAP_ROWS = 4  # rows that a dynamic layer map is found on


@dataclass
class Distillation:
    """The task that `loop.py` trains."""

    config: DistillConfig
    data: TrainingData
    module: Distilled

    def __post_init__(self) -> None:
        self._maps: dict[str, dict[int, int]] = {}
        self._stage = -1
        self._points = [trained_points(losses.exits, self.module) for losses in self.config.stages]

    def groups(self) -> list[dict[str, Any]]:
        """Backbone, and what is new: exits and projections."""
        o, m = self.config.optimizer, self.module
        old = {id(p): p for tune in self.config.tunes for p in tuned(m.backbone, tune)}
        new = [*m.exits.parameters(), *m.projections.parameters()]
        scale = 1.0 if o.exits_lr is None else o.exits_lr / o.lr
        groups = [{"params": list(old.values()), "scale": 1.0}, {"params": new, "scale": scale}]
        return [group for group in groups if group["params"]]

    def begin(self, step: int) -> tuple[Batch, StepPlan]:
        """The rows of a step and what becomes of them."""
        config, stage = self.config, self._switch(step)
        losses = config.stages[stage]
        rows = rows_of_step(len(self.data.train), config.batch, config.seed, step)
        batch = self.data.train.batch(rows)
        weights, last = self._weights(stage, step)
        hidden, attention = (self._map(loss, step, batch) for loss in (losses.hidden, losses.attention))
        anchored = 0 if losses.anchor is None else int(batch.anchored(losses.anchor.every).sum())
        counts = max(1, batch.counted), int(batch.mask.sum()), max(1, anchored)
        return batch, StepPlan(losses, weights, last, hidden, attention, *counts, self._dropped(step, len(rows)))

    def part(self, plan: StepPlan, start: int, stop: int) -> StepPlan:
        """The same for some of the rows."""
        if plan.dropped is None:
            return plan
        return replace(plan, dropped=plan.dropped[:, start:stop].to(self._device))

    def evaluate(self) -> dict[str, float]:
        """Agreement and cross-entropy of exits and last layer on held-out rows."""
        size = self.config.micro or self.config.batch
        most = self.config.evaluate_rows
        return apart(self.module, lambda: evaluate_exits(self.module, self.data.held_out, most, size))

    def state(self) -> dict[str, Any]:
        """Dynamic layer maps."""
        return {"maps": self._maps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._maps = dict(state["maps"])

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _switch(self, step: int) -> int:
        """Say which stage a step is of, and give a gradient to what that stage trains."""
        stage = self.config.stage_of(step)
        if stage == self._stage:
            return stage
        self._stage, tune, losses = stage, self.config.tunes[stage], self.config.stages[stage]
        self.module.requires_grad_(False)
        for parameter in tuned(self.module.backbone, tune):
            parameter.requires_grad_(True)
        self.module.exits.requires_grad_(tune.exits)
        self.module.projections.requires_grad_(True)
        self.module.train(tune.backbone)
        whole = losses.task or losses.last_kl or losses.attention or losses.hidden or losses.anchor
        depths = [p.depth for p in self._points[stage]]
        self.module.backbone.detach_after = None if whole or not depths else max(depths)
        return stage

    def _weights(self, stage: int, step: int) -> tuple[dict[Point, float], float]:
        exits, points = self.config.stages[stage].exits, self._points[stage]
        if exits is None:
            return {}, 1.0
        enabled = enabled_exits(self.config.curriculum, len(points), step, self.config.steps)
        total = self.module.backbone.spec.layers
        weights, last = exit_weights(
            exits.scale, [p.depth for p in points], total, s=exits.s, weights=exits.weights or (), enabled=enabled
        )
        share = warmed(step, exits.warmup, exits.warmup_shape)
        return {points[i]: weights[i] * share for i in enabled}, last

    def _dropped(self, step: int, rows: int) -> torch.Tensor | None:
        config = self.config.layer_dropout
        if config is None:
            return None
        rates = dropout_rates(config, self.module.backbone.spec.layers, step, self.config.steps)
        return torch.from_numpy(dropped_layers(rates, range(rows), self.config.seed, step))

    def _map(self, loss: HiddenLoss | AttentionLoss | None, step: int, batch: Batch) -> dict[int, int]:
        """The layer map of a loss at a step; a dynamic one is found again now and then."""
        if loss is None:
            return {}
        name = type(loss).__name__
        own, total = isinstance(loss, HiddenLoss) and loss.of == "self", self.module.backbone.spec.layers
        layers = mapped_layers(loss.layers, self.module.exits.schema, total, own=own)
        other = self.module.backbone if own else self.module.teacher
        assert other is not None
        if loss.map.kind == "dynamic":
            if name not in self._maps or step % loss.map.every == 0:
                first = max(layers) + 1 if own else 1
                others = range(first, other.spec.layers + 1)
                found = partial(nearest_layers, self.module, other, layers, others, batch.part(0, MAP_ROWS))
                self._maps[name] = apart(self.module, found)
            return self._maps[name]
        if own and loss.map.kind != "explicit":
            mend = "map it explicitly or dynamically"
            raise UsageError("a model's own layers map onto themselves", where="losses.hidden", mend=mend)
        return fixed_map(loss.map, layers, total, other.spec.layers)


@torch.no_grad()
def nearest_layers(
    module: Distilled, teacher: Backbone, layers: Sequence[int], others: Sequence[int], batch: Batch
) -> dict[int, int]:
    """The monotone map of least summed mean squared difference of hidden states on some rows."""
    batch = batch.to(next(module.parameters()).device)
    ours, theirs = module.backbone(batch.ids, layers).hidden, teacher(batch.ids, others).hidden
    distances = np.zeros((len(layers), len(others)))
    for i, n in enumerate(layers):
        state = module.projected(n, ours[n])
        for j, other in enumerate(others):
            distances[i, j] = float((state - theirs[other])[batch.mask].square().mean())
    return {n: others[j] for n, j in zip(layers, dynamic_map(distances), strict=True)}


def trained_points(exits: ExitLoss | None, module: Distilled) -> list[Point]:
    """Where exits are trained, shallow first."""
    own = {e.depth: e for e in module.exits.schema.exits}
    if exits is None or exits.layers == "exits":
        chosen = sorted(own)
    else:
        chosen = list(range(1, module.backbone.spec.layers)) if exits.layers == "all" else sorted(set(exits.layers))
    return [Point(n, own.get(n)) for n in chosen]
