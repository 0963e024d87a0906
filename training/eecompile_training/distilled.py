"""A causal language model with its exits as one module, whose `forward` is the loss of some rows of a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from eecompile import contract as c
from eecompile.student.exits import ExitSpec
from eecompile.student.model import DecoderSpec
from eecompile_training.backbone import Backbone, States, head_logits
from eecompile_training.data import IGNORED, Batch
from eecompile_training.decoder_math import finish_logits
from eecompile_training.distill_config import Anchor, Losses
from eecompile_training.exits import TorchExits
from eecompile_training.gates import gates_loss
from eecompile_training.losses import HeadTerm, attention_loss, head_losses, hidden_loss

LAST, ANCHOR = "last", "anchor"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Point:
    """Where something is trained as an exit: after `depth` layers; `exit_` is None where the student has none there."""

    depth: int
    exit_: ExitSpec | None = None

    @property
    def name(self) -> str:
        """What its metrics are called."""
        return f"exit_{self.depth}"


@dataclass(frozen=True)
class StepPlan:
    """What a step does. weights: of the exits that are on, and the last layer's. hidden, attention: layer maps.
    predictions, tokens, anchored: of the step's whole batch. dropped: bool [L, B] of these rows."""

    losses: Losses
    weights: Mapping[Point, float] = field(default_factory=dict)
    last: float = 1.0
    hidden: Mapping[int, int] = field(default_factory=dict)
    attention: Mapping[int, int] = field(default_factory=dict)
    predictions: int = 1
    tokens: int = 1
    anchored: int = 1
    dropped: Tensor | None = None


class Distilled(nn.Module):
    """Backbone, exits and projections; the teacher is no part of it. chunk: rows of logits in memory at a time."""

    def __init__(
        self, backbone: Backbone, exits: TorchExits, teacher: Backbone | None, *, projected: Sequence[int] = (),
        chunk: int = 512, frequent: Callable[[int], list[int]] = lambda n: [],
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.exits, self.chunk = backbone, exits, chunk
        self._frequent, self._teacher = frequent, (teacher,)
        wide = backbone.spec.hidden if teacher is None else teacher.spec.hidden
        widths = (backbone.spec.hidden, wide)
        self.projections = nn.ModuleDict({str(n): nn.Linear(*widths, bias=False) for n in projected})

    @property
    def teacher(self) -> Backbone | None:
        """The model that is imitated, frozen."""
        return self._teacher[0]

    def forward(self, batch: Batch, plan: StepPlan) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of these rows, and its parts, unweighted and without gradient."""
        losses = plan.losses
        depths = {p.depth for p in plan.weights} | set(plan.hidden) | self._own_targets(plan)
        depths |= {e.depth for e in self.exits.schema.exits} if losses.gates else set()
        eager = losses.attention is not None
        states = self.backbone(batch.ids, sorted(depths), dropped=plan.dropped, attentions=eager)
        taught = self._taught(batch, plan)
        found = [self._heads(batch, plan, states, taught), self._layers(batch, plan, states, taught)]
        if losses.anchor is not None:
            found.append(self._anchor(losses.anchor, batch, plan, states, taught))
        if losses.gates:
            value = gates_loss(self.backbone, self.exits, states, batch, plan.predictions, self.chunk)
            found.append((losses.gates * value, {"gates": value}))
        total = torch.stack([value for value, _ in found]).sum()
        return total, {name: part.detach() for _, parts in found for name, part in parts.items()}

    def call(self, function: Callable[[], T]) -> T:
        """`function()`, which uses parts of this module; sharded ones are whole meanwhile (`sharding.apart`)."""
        return function()

    def ready(self, point: Point, states: States) -> Tensor:
        """What an exit's head reads [B, T, D]."""
        hidden = states.hidden[point.depth]
        normed = self.backbone.norm(hidden)
        return normed if point.exit_ is None else self.exits.ready(point.exit_, hidden, normed)

    def projected(self, layer: int, hidden: Tensor) -> Tensor:
        """The state after `layer` layers at the teacher's width."""
        found: Tensor = self.projections[str(layer)](hidden) if str(layer) in self.projections else hidden
        return found

    def _own_targets(self, plan: StepPlan) -> set[int]:
        own = plan.losses.hidden is not None and plan.losses.hidden.of == "self"
        return set(plan.hidden.values()) if own else set()

    def _taught(self, batch: Batch, plan: StepPlan) -> States | None:
        if not plan.losses.needs_teacher:
            return None
        assert self.teacher is not None
        hidden = plan.losses.hidden
        at = set(plan.hidden.values()) if hidden is not None and hidden.of == "teacher" else set()
        with torch.no_grad():
            return self.teacher(batch.ids, sorted(at), attentions=plan.losses.attention is not None)  # type: ignore[no-any-return]

    def _heads(
        self, batch: Batch, plan: StepPlan, states: States, taught: States | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Last layer and exits at the head, and what draws exits to the last layer."""
        counted = batch.targets != IGNORED
        finished, terms = states.finished[counted], []
        ready = {point: self.ready(point, states) for point in plan.weights}
        terms = self._terms(plan, finished, {point: rows[counted] for point, rows in ready.items()})
        total, parts = finished.new_zeros(()), dict[str, Tensor]()
        if terms:
            theirs = None if taught is None else taught.finished[counted]
            total, parts = self._asked(terms, batch.targets[counted], plan.predictions, finished, theirs)
        final = plan.losses.to_final
        if final is not None:
            for point, rows in ready.items():
                value = hidden_loss(rows, states.finished.detach(), final.kind, counted, plan.predictions)
                total, parts[f"{point.name}.to_final"] = total + final.weight * value, value
        return total, parts

    def _anchor(
        self, anchor: Anchor, batch: Batch, plan: StepPlan, states: States, taught: States | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The last layer on tokens that no other loss asks about."""
        rows = batch.anchored(anchor.every)
        finished, full = states.finished[rows], partial(_full_logits, self.backbone)
        term = HeadTerm(ANCHOR, finished, full, self._head(), anchor.ce, anchor.kl, of="teacher", is_own=True)
        theirs = None if taught is None else taught.finished[rows]
        return self._asked([term], batch.ids.roll(-1, 1)[rows], plan.anchored, finished, theirs)

    def _asked(
        self, terms: Sequence[HeadTerm], targets: Tensor, count: int, finished: Tensor, theirs: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of terms against the last layer and the teacher, whose states are `finished` and `theirs` [N, D]."""
        backbone, teacher = self.backbone, self.teacher
        found = head_losses(
            terms, targets, count, own=lambda part: backbone.logits(finished[part]),
            teacher=None if teacher is None or theirs is None else lambda part: teacher.logits(theirs[part]),
            chunk=self.chunk,
        )  # fmt: skip
        return found.total, found.parts

    def _head(self) -> tuple[Tensor, ...]:
        head = self.backbone.head
        return (head.weight, *([] if head.bias is None else [head.bias]))

    def _terms(self, plan: StepPlan, finished: Tensor, ready: Mapping[Point, Tensor]) -> list[HeadTerm]:
        losses, exits = plan.losses, plan.losses.exits
        head = self._head()
        full = partial(_full_logits, self.backbone)
        terms = []
        task = losses.task * plan.last
        if task or losses.last_kl:
            kl, temperature = losses.last_kl, losses.temperature
            terms.append(HeadTerm(LAST, finished, full, head, task, kl, temperature, of="teacher", is_own=True))
        if exits is None or not (exits.ce or exits.kl):
            return terms
        tokens = None if exits.vocabulary is None else self._frequent(exits.vocabulary)
        few = None if tokens is None else torch.tensor(tokens, device=finished.device)
        chosen = head if few is None else tuple(part[few] for part in head)
        for point, rows in ready.items():
            weight = plan.weights[point]
            if not weight:
                continue
            settings: dict[str, Any] = {
                "ce": weight * exits.ce, "kl": weight * exits.kl, "temperature": exits.temperature, "of": exits.of,
            }  # fmt: skip
            if point.exit_ is None or point.exit_.head == c.FULL_HEAD:
                terms.append(HeadTerm(point.name, rows, full, chosen, columns=few, **settings))
            else:
                terms.append(self._small_term(point, rows, few, head[0], settings))
        return terms

    def _small_term(
        self, point: Point, rows: Tensor, few: Tensor | None, full: Tensor, settings: Mapping[str, Any]
    ) -> HeadTerm:
        assert point.exit_ is not None
        shape = next(h for h in self.exits.schema.heads if h.name == point.exit_.head)
        if shape.kind == "shortlist":
            columns = torch.tensor(shape.tokens, device=rows.device)
            logits = partial(_linear, self.backbone.spec, self._bias(columns))
            return HeadTerm(point.name, rows, logits, (full[columns],), columns=columns, **settings)
        parts = ["down", "up", *(["bias"] if shape.bias else [])]
        tensors = {part: self.exits.tensor(f"head.{shape.name}.{part}") for part in parts}
        chosen = tuple(t if few is None or name == "down" else t[few] for name, t in tensors.items())
        logits = partial(_low_rank, self.backbone.spec, self._bias(few))
        return HeadTerm(point.name, rows, logits, chosen, columns=few, **settings)

    def _bias(self, columns: Tensor | None) -> Tensor | None:
        """The model's own bias of these logits (None: of all), where it has one."""
        bias = self.backbone.head.bias
        return None if bias is None else bias.detach() if columns is None else bias.detach()[columns]

    def _layers(
        self, batch: Batch, plan: StepPlan, states: States, taught: States | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states and attention maps against those of other layers."""
        total, parts = states.finished.new_zeros(()), dict[str, Tensor]()
        hidden, attention = plan.losses.hidden, plan.losses.attention
        for n, other in plan.hidden.items() if hidden is not None else ():
            assert hidden is not None
            source = states if hidden.of == "self" else taught
            assert source is not None
            ours = self.projected(n, states.hidden[n])
            value = hidden_loss(ours, source.hidden[other].detach(), hidden.kind, batch.mask, plan.tokens)
            total, parts[f"hidden_{n}_to_{other}"] = total + hidden.weight * value, value
        for n, other in plan.attention.items() if attention is not None else ():
            assert attention is not None
            assert taught is not None
            value = attention_loss(states.attentions[n - 1], taught.attentions[other - 1], batch.mask, plan.tokens)
            total, parts[f"attention_{n}_to_{other}"] = total + attention.weight * value, value
        return total, parts


def _full_logits(backbone: Backbone, rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return head_logits(backbone.spec, rows, parameters[0], parameters[1] if len(parameters) > 1 else None)


def _linear(spec: DecoderSpec, bias: Tensor | None, rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return finish_logits(spec, functional.linear(rows, parameters[0]), bias)


def _low_rank(spec: DecoderSpec, bias: Tensor | None, rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    down, up = parameters[:2]
    return finish_logits(spec, functional.linear(functional.linear(rows, down), up, *parameters[2:]), bias)
