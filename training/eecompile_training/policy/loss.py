"""The loss of GRPO (Shao et al. 2024, equation 3 and its k3 estimator) over exit decisions, and their entropy."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def policy_loss(
    new: Tensor, old: Tensor, reference: Tensor, advantage: Tensor, *, clip: float, beta: float
) -> Tensor:  # fmt: skip
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) + beta (e^(ref - new) - (ref - new) - 1), of each decision [N].

    new, old, reference: log-probabilities [N] of what was chosen, under the gates as they are, as they were when it was
    chosen, and under the reference policy; r = e^(new - old). advantage: A [N].
    """
    ratio = torch.exp(new - old)
    bounded = torch.clamp(ratio, 1 - clip, 1 + clip)
    gap = reference - new
    return -torch.minimum(ratio * advantage, bounded * advantage) + beta * (torch.exp(gap) - gap - 1)


def entropy(logits: Tensor) -> Tensor:
    """Of a gate's coin, in nats [N]."""
    p = torch.sigmoid(logits)
    return -(p * logsigmoid(logits) + (1 - p) * logsigmoid(-logits))
