"""A recursive model in training whose tokens a router sends through more loops or fewer (mor.py has the formulas)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from eecompile.schema import Strict
from eecompile.shapes import RouterShape
from eecompile.student.exits import EarlyExit
from eecompile_training.backbone import Backbone
from eecompile_training.data import IGNORED, Batch, Rows
from eecompile_training.distilled import Distilled, Point, StepPlan
from eecompile_training.exits import TorchExits
from eecompile_training.mor import capacity, expert_choice, row_balance, stops, taken_loss, weighted
from eecompile_training.settings import Steps, Weight


class RouterConfig(Strict):
    """kind: each further loop chooses its tokens, or each token its loops. weight: of the auxiliary loss, or of the
    balance among a row's tokens. alpha: of a token's weight g = alpha sigmoid(theta.h), whose gradient the router gets
    from the model's losses. units: of a token-choice router's inner layer (0: linear). warmup: steps until loops have
    their capacity."""

    kind: Literal["expert_choice", "token_choice"] = "expert_choice"
    weight: Weight = 0.1
    alpha: Weight = 0.1
    units: Annotated[int, Field(ge=0, le=4096)] = 0
    warmup: Steps = 0

    def schema_with_routers(self, schema: EarlyExit) -> EarlyExit:
        """The exits with the routers that this asks for: at each of them, stop or go on; or at the first, how deep."""
        own = RouterShape(choices=2)
        first = RouterShape(choices=len(schema.exits) + 1, units=self.units)
        by_token = self.kind == "token_choice"
        shapes = [(first if number == 0 else None) if by_token else own for number in range(len(schema.exits))]
        exits = [e.model_copy(update={"router": shape}) for e, shape in zip(schema.exits, shapes, strict=True)]
        return EarlyExit.model_validate(schema.model_dump() | {"exits": [e.model_dump() for e in exits]})


@dataclass(frozen=True)
class RoutedPlan(StepPlan):
    """shares: of a row's tokens that loops 2, 3, .. may take."""

    shares: tuple[float, ...] = ()


@dataclass
class _Pass:
    """What hooks know and find in one pass. real [B, T]: no padding. before: the states at the end of the loop before.
    weight, taken [B, T]: of the loop that runs. Lists have an entry for each loop after the first."""

    real: Tensor
    shares: tuple[float, ...]
    before: Tensor
    weight: Tensor
    weighs: Tensor
    taken: list[Tensor] = field(default_factory=list)
    allowed: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    depth: Tensor | None = None


class Routed(Distilled):
    """Exits are at the ends of all loops but the last."""

    def __init__(
        self, backbone: Backbone, exits: TorchExits, teacher: Backbone | None, router: RouterConfig, *, chunk: int,
        frequent: Callable[[int], list[int]], last: int,
    ) -> None:  # fmt: skip
        super().__init__(backbone, exits, teacher, chunk=chunk, frequent=frequent)
        self.router = router
        self._pass: _Pass | None = None
        for number, end in enumerate([*(e.depth for e in exits.schema.exits), last]):
            backbone.layers[end - 1].register_forward_hook(partial(self._at_end, number), prepend=True)

    def forward(self, batch: Batch, plan: StepPlan) -> tuple[Tensor, dict[str, Tensor]]:
        """As Distilled's, with the routers' own losses."""
        assert isinstance(plan, RoutedPlan)
        nothing = torch.zeros(batch.mask.shape, device=batch.mask.device)
        found = self._pass = _Pass(batch.mask, plan.shares, nothing, nothing, batch.mask)
        total, parts = super().forward(batch, plan)
        self._pass = None
        if self.router.kind == "expert_choice":
            triples = zip(found.scores, found.taken, found.allowed, strict=True)
            own = torch.stack([taken_loss(*three, plan.tokens) for three in triples]).sum()
        else:
            own = row_balance(found.scores[0], batch.mask) / plan.tokens
        loops = stops(found.taken, batch.mask).sum() / plan.tokens
        return total + self.router.weight * own, {**parts, "router": own.detach(), "loops": loops}

    def _at_end(self, number: int, module: Any, args: Any, output: Any) -> Any:
        """Hook on the last layer of loop `number` (from 0)."""
        run = self._pass
        if run is None:
            return None
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if number:
            hidden = weighted(hidden, run.before, run.weight, run.weighs)
        if number < len(self.exits.schema.exits):
            self._route(number, run, hidden)
        run.before = hidden
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _route(self, number: int, run: _Pass, hidden: Tensor) -> None:
        """Choose what runs the next loop, and with which weight."""
        exit_ = self.exits.schema.exits[number]
        if self.router.kind == "expert_choice":
            logits = self.exits.router(exit_, hidden)
            score, allowed = logits[..., 1] - logits[..., 0], run.taken[-1] if run.taken else run.real
            taken = expert_choice(score.detach(), allowed, run.real, run.shares[number])
            run.scores.append(score)
            run.allowed.append(allowed)
            run.taken.append(taken)
            run.weight, run.weighs = self.router.alpha * score.sigmoid(), taken
            return
        if number == 0:
            logits = self.exits.router(exit_, hidden)
            run.scores.append(logits)
            run.depth = logits.argmax(-1)
            run.weight = self.router.alpha * logits.softmax(-1).amax(-1)
        assert run.depth is not None
        run.taken.append(run.real & (run.depth > number))
        run.weighs = run.real & (run.depth == number + 1)


def shares_at(router: RouterConfig, exits: int, step: int) -> tuple[float, ...]:
    """The capacity of each loop after the first at a step."""
    return tuple(capacity(n, exits + 1, step, router.warmup) for n in range(1, exits + 1))


@torch.no_grad()
def evaluate_router(module: Routed, rows: Rows, most: int, size: int) -> dict[str, float]:
    """On held-out rows by the rule that ships (sigmoid of stop less go above .5, or the first choice): "router.loops",
    the mean loops a token, and "router.agreement" of the exits that tokens stop at with the last layer."""
    exits, device = module.exits.schema.exits, next(module.parameters()).device
    right, loops, count = 0.0, 0.0, 0
    was = module.training
    module.eval()
    for start in range(0, min(most, len(rows)), size):
        batch = rows.batch(range(start, min(start + size, most, len(rows)))).to(device)
        states = module.backbone(batch.ids, [e.depth for e in exits])
        counted = batch.targets != IGNORED
        depth = stop_of(module, [states.hidden[e.depth][counted] for e in exits])
        ready = [module.ready(Point(e.depth, e), states)[counted] for e in exits] + [states.finished[counted]]
        chosen = torch.stack(ready)[depth, torch.arange(len(depth), device=device)]
        for part in torch.arange(len(depth), device=device).split(module.chunk):
            final = module.backbone.logits(states.finished[counted][part]).argmax(-1)
            right += float((module.backbone.logits(chosen[part]).argmax(-1) == final).sum())
        loops, count = loops + float((depth + 1).sum()), count + len(depth)
    module.train(was)
    return {"router.agreement": right / count, "router.loops": loops / count} if count else {}


def stop_of(module: Routed, hidden: list[Tensor]) -> Tensor:
    """The exit [n] that tokens with states hidden[g] [n, D] at exit g stop at, len(hidden) for none."""
    exits = module.exits.schema.exits
    if module.router.kind == "token_choice":
        return module.exits.router(exits[0], hidden[0]).argmax(-1)
    stop = torch.stack([module.exits.router(e, h).argmax(-1) == 0 for e, h in zip(exits, hidden, strict=True)])
    return torch.cat([stop, torch.ones_like(stop[:1])]).float().argmax(0)
