"""Cyclic gates: how far a block's result is from a teacher's layer, and what its gate should say of that.

The distance is Sinkhorn's between the tokens' states of a row, with cosine cost (Cuturi, "Sinkhorn Distances", 2013).
Its marginals are uniform and sum to one; with marginals of ones, as the method was first released, distances grow with
the number of tokens and every gate learns to say zero.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

EPSILON: Final = 0.05  # of the entropy, in units of the cost
ITERATIONS: Final = 5
DECAY: Final = 0.7


def sinkhorn_distance(
    ours: Tensor, theirs: Tensor, mask: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS
) -> Tensor:
    """Each row's transport cost [B] between states ours and theirs [B, T, D] of its tokens `mask` [B, T]: sum_ij P_ij
    (1 - cos(ours_i, theirs_j)), P the plan with uniform marginals 1/n after `iterations` scalings, in log space."""
    cost = 1 - functional.normalize(ours, dim=-1) @ functional.normalize(theirs, dim=-1).transpose(1, 2)
    pairs = mask[:, :, None] & mask[:, None, :]
    kernel = (-cost / epsilon).masked_fill(~pairs, -torch.inf)
    share = -mask.sum(1, keepdim=True).clamp(min=1).to(cost).log()  # log 1/n
    u = torch.zeros_like(cost[:, :, 0])
    v = torch.zeros_like(u)
    for _ in range(iterations):
        u = (share - torch.logsumexp(kernel + v[:, None, :], dim=2)).masked_fill(~mask, 0.0)
        v = (share - torch.logsumexp(kernel + u[:, :, None], dim=1)).masked_fill(~mask, 0.0)
    plan = torch.exp(kernel + u[:, :, None] + v[:, None, :])
    return (plan * cost.masked_fill(~pairs, 0.0)).sum((1, 2))


def gate_target(distance: Tensor) -> Tensor:
    """What a gate is to say of a result at this distance: exp(-0.7 d)."""
    return torch.exp(-DECAY * distance)


def cycle_loss(gate: Tensor, distance: Tensor, mask: Tensor) -> Tensor:
    """The sum over rows of MSE(gate, target) + 0.5 d: gate [B, T] of tokens `mask`, distance [B]. The target has no
    gradient, the distance has."""
    square = (gate - gate_target(distance.detach())[:, None]).square() * mask
    return (square.sum(1) / mask.sum(1).clamp(min=1) + 0.5 * distance).sum()
