"""Mixture-of-Recursions: routers that give each token its depth of a recursive model (Bae et al., 2025, section 2.2).

Expert choice: before every further loop a router takes the tokens with the highest theta.h, of those that ran the loop
before, as many as the loop's capacity says: 3/3, 2/3, 1/3 of a row's tokens in three loops. Since a token cannot know
whether later ones will beat it, an auxiliary loss teaches sigmoid(theta.h) whether it was taken; decoding goes by .5.
Token choice: one router gives each token all of its depth at once; a balance loss keeps every depth in use.

The paper multiplies what a loop adds by the router's weight g, so that the router has a gradient. A compiled block has
no such factor, and a token that leaves is the exit's: here the factor is one, with the gradient of g.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def capacity(loop: int, loops: int, step: int = 0, warmup: int = 0) -> float:
    """The share of a row's tokens that loop `loop` (from 0) of `loops` may take: (loops - loop) / loops, reached from 1
    along half a cosine over `warmup` steps."""
    end = (loops - loop) / loops
    if step >= warmup:
        return end
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / warmup))


def expert_choice(score: Tensor, allowed: Tensor, real: Tensor, share: float) -> Tensor:
    """bool [B, T]: of the tokens `allowed` [B, T] those with the highest `score` [B, T], ceil(share n) of a row with n
    `real` tokens, or all that are allowed where those are fewer; of equal scores the earlier ones."""
    wanted = torch.ceil(share * real.sum(1) - 1e-6).long()
    order = torch.argsort(score.masked_fill(~allowed, -torch.inf), dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    return allowed & (rank < wanted[:, None])


def taken_loss(score: Tensor, taken: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The auxiliary loss: binary cross-entropy of sigmoid(score) against `taken`, summed over tokens `allowed`, all
    [B, T], over `count`."""
    total = functional.binary_cross_entropy_with_logits(score[allowed], taken[allowed].to(score), reduction="sum")
    return total / count


def balance_loss(logits: Tensor) -> Tensor:
    """N sum_i f_i P_i of router logits [n, N]: f_i the share of tokens whose first choice is i, P_i the mean
    probability of i; one where all depths are used alike. The gradient is P's."""
    probability = logits.softmax(-1)
    chosen = functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(probability.dtype)
    return logits.shape[-1] * (chosen.mean(0) * probability.mean(0)).sum()


def row_balance(logits: Tensor, real: Tensor) -> Tensor:
    """The balance loss of each row's `real` tokens [B, T] by itself, weighed by how many they are, so that rows in turn
    or in several processes add up; logits [B, T, N]."""
    return torch.stack([balance_loss(row[mask]) * mask.sum() for row, mask in zip(logits, real, strict=True)]).sum()


def weighted(after: Tensor, before: Tensor, weight: Tensor, taken: Tensor) -> Tensor:
    """States [B, T, D] after a loop with the gradient by `weight` [B, T] of before + weight (after - before) for tokens
    `taken`, at a weight of one: the value is that of `after`, to the bit."""
    slope = (weight - weight.detach()) * taken
    return after + (after - before).detach() * slope[..., None]


def stops(taken: Sequence[Tensor], real: Tensor) -> Tensor:
    """Loops [B, T] that each token runs, from 1; 0 of padding. taken: bool [B, T] of each loop after the first, a token
    that one leaves out is in none after it."""
    return real.long() + sum((mask.long() for mask in taken), torch.zeros_like(real, dtype=torch.long))
