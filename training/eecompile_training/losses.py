"""The losses of distillation. Each is a sum over what counts, divided by `count`, which is of the whole step's batch:
so the parts of a batch, in turn or in several processes, add up to the loss of the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Logits = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class HeadTerm:
    """What one exit, or the last layer, is asked: its rows [N, D], and how logits [N, W] come of them.

    parameters: what `logits` takes beside the rows. ce, kl: weights. columns: the tokens of the W logits (None: all).
    of: whether KL is against the teacher's final logits or the last layer's own.
    """

    name: str
    rows: Tensor
    logits: Logits
    parameters: tuple[Tensor, ...]
    ce: float = 0.0
    kl: float = 0.0
    temperature: float = 1.0
    columns: Tensor | None = None
    of: Literal["teacher", "self"] = "self"
    is_own: bool = False


@dataclass(frozen=True)
class HeadLosses:
    """total: the weighted sum, with a gradient. parts: "<name>.ce" and "<name>.kl", without weight and gradient."""

    total: Tensor
    parts: dict[str, Tensor]


def head_losses(
    terms: Sequence[HeadTerm], targets: Tensor, count: int, *, own: Callable[[slice], Tensor],
    teacher: Callable[[slice], Tensor] | None = None, chunk: int = 512,
) -> HeadLosses:  # fmt: skip
    """Cross-entropy against targets [N], and T^2 KL(p_T || q_T) against the logits [n, V] of some rows that `own` (the
    last layer's, detached) or `teacher` gives, of every term, divided by `count`.

    At no time are there logits of more than `chunk` rows of one term and of what it is held against: gradients are
    taken chunk by chunk on the way. `own` and `teacher` are called only where a term asks for them, `own` not where a
    term `is_own`, the last layer itself, which has to come first.
    """
    leaves = [term.rows for term in terms] + [p for term in terms for p in term.parameters]
    unique = list({id(leaf): leaf for leaf in leaves}.values())
    job = _Job(list(terms), targets, count, own, teacher, chunk, [id(leaf) for leaf in unique])
    total = _HeadLosses.apply(job, *unique)
    return HeadLosses(total, job.parts)


@dataclass
class _Job:
    """What the two passes of `_HeadLosses` know. order: which leaf is which, by identity."""

    terms: list[HeadTerm]
    targets: Tensor
    count: int
    own: Callable[[slice], Tensor]
    teacher: Callable[[slice], Tensor] | None
    chunk: int
    order: list[int]

    def __post_init__(self) -> None:
        zero = self.targets.new_zeros((), dtype=torch.float32)
        kinds = [(term, kind) for term in self.terms for kind in ("ce", "kl") if getattr(term, kind)]
        self.parts = {f"{term.name}.{kind}": zero for term, kind in kinds}

    def run(self, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and its gradient by each leaf that is `wanted`."""
        known = dict(zip(self.order, leaves, strict=True))
        needs = dict(zip(self.order, wanted, strict=True))
        found = {key: torch.zeros_like(known[key]) if needs[key] else None for key in self.order}
        total = self.targets.new_zeros((), dtype=torch.float32)
        for start in range(0, len(self.targets), self.chunk):
            part = slice(start, min(start + self.chunk, len(self.targets)))
            given: dict[str, Tensor] = {}
            for term in self.terms:
                if term.kl and term.of not in given:
                    given[term.of] = self._given(term.of, part)
                value, logits = self._term(term, part, given.get(term.of), known, needs, found)
                total = total + value
                if term.is_own:
                    given["self"] = logits
        return total, [found[key] for key in self.order]

    def _given(self, of: str, part: slice) -> Tensor:
        source = self.own if of == "self" else self.teacher
        assert source is not None
        with torch.no_grad():
            return source(part)

    def _term(
        self, term: HeadTerm, part: slice, given: Tensor | None, known: dict[int, Tensor], needs: dict[int, bool],
        found: dict[int, Tensor | None],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One term of one chunk and its logits, detached; adds to the gradients `found`."""
        keys = [id(term.rows), *map(id, term.parameters)]
        with torch.enable_grad():
            rows = known[keys[0]][part].detach().requires_grad_(needs[keys[0]])
            parameters = [known[key].detach().requires_grad_(needs[key]) for key in keys[1:]]
            logits = term.logits(rows, parameters)
        with torch.no_grad():
            value, slope = self._value(term, logits, part, given)
        inputs = [(key, t) for key, t in zip(keys, [rows, *parameters], strict=True) if needs[key]]
        if inputs and (term.ce or term.kl):
            grads = torch.autograd.grad(logits, [t for _, t in inputs], slope.to(logits.dtype), allow_unused=True)
            for (key, _), grad in zip(inputs, grads, strict=True):
                target = found[key]
                if grad is not None and target is not None:
                    (target[part] if key == keys[0] else target).add_(grad)
        return value, logits.detach()

    def _value(self, term: HeadTerm, logits: Tensor, part: slice, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weighted loss of a chunk, and its gradient by the logits [n, W]: for cross-entropy softmax(z) minus the
        target, for T^2 KL T times (softmax(z / T) - p_T)."""
        z, value = logits.float(), logits.new_zeros((), dtype=torch.float32)
        slope: Tensor | None = None
        if term.ce:
            ce, slope = _cross_entropy(z, self.targets[part], term.columns)
            value = value + term.ce * ce / self.count
            slope.mul_(term.ce / self.count)
            self._note(f"{term.name}.ce", ce / self.count)
        if term.kl and given is not None:
            chosen = given if term.columns is None else given[:, term.columns]
            kl, gradient = _divergence(z, chosen.float(), term.temperature)
            value = value + term.kl * kl / self.count
            gradient.mul_(term.kl / self.count)
            slope = gradient if slope is None else slope.add_(gradient)
            self._note(f"{term.name}.kl", kl / self.count)
        return value, torch.zeros_like(z) if slope is None else slope

    def _note(self, name: str, value: Tensor) -> None:
        self.parts[name] = self.parts[name] + value


class _HeadLosses(torch.autograd.Function):
    """Gradients are computed with the value, so that no logits are kept for the pass back."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *leaves: Tensor) -> Tensor:
        total, grads = job.run(leaves, [leaf.requires_grad for leaf in leaves])
        ctx.save_for_backward(*[torch.empty(0) if grad is None else grad for grad in grads])
        ctx.wanted = [grad is not None for grad in grads]
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.wanted, strict=True)
        return (None, *[grad * upstream[0] if wanted else None for grad, wanted in grads])


def _cross_entropy(z: Tensor, targets: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum over rows of -log softmax(z)[target], and its gradient. A row whose target is not among the columns does
    not count."""
    counts = torch.ones_like(targets, dtype=torch.bool)
    if columns is not None:
        order = torch.argsort(columns)
        place = torch.searchsorted(columns[order], targets).clamp_(max=len(columns) - 1)
        counts, targets = columns[order][place] == targets, order[place]
    logs = functional.log_softmax(z, dim=-1)
    at = targets[:, None]
    value = -(logs.gather(1, at)[:, 0] * counts).sum()
    gradient = logs.exp_()
    gradient.scatter_add_(1, at, torch.full_like(at, -1, dtype=gradient.dtype))
    return value, gradient.mul_(counts[:, None])


def _divergence(z: Tensor, given: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The sum over rows of T^2 KL(softmax(given / T) || softmax(z / T)), and its gradient by z."""
    ours, theirs = (functional.log_softmax(t / temperature, dim=-1) for t in (z, given))
    p = theirs.exp()
    value = temperature**2 * (p * (theirs - ours)).sum()
    return value, ours.exp_().sub_(p).mul_(temperature)


def hidden_loss(ours: Tensor, theirs: Tensor, kind: Literal["cosine", "mse"], mask: Tensor, count: int) -> Tensor:
    """The sum of 1 - cos, or of the mean squared difference, of states [B, T, D] where mask [B, T], over `count`."""
    if kind == "cosine":
        each = 1 - functional.cosine_similarity(ours, theirs, dim=-1)
    else:
        each = (ours - theirs).square().mean(-1)
    return (each * mask).sum() / count


def attention_loss(ours: Tensor, theirs: Tensor, mask: Tensor, count: int) -> Tensor:
    """The sum over query tokens where mask [B, T] of the squared difference of attention maps [B, H, T, T], summed over
    keys, mean over heads, over `count`."""
    each = (ours - theirs).square().sum(-1).mean(1)
    return (each * mask).sum() / count


def gate_loss(logit: Tensor, agrees: Tensor, count: int) -> Tensor:
    """Binary cross-entropy of a gate's logits [N] against whether its exit agrees [N], over `count`."""
    return functional.binary_cross_entropy_with_logits(logit, agrees.to(logit), reduction="sum") / count
