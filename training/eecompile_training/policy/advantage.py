"""Advantages: what a decision brought, compared with the other rollouts of its prompt.

GRPO (Shao et al. 2024) takes the place of a value function by the mean over a group. Here each decision has its own
reward-to-go, and is compared with those of the group that were asked the same: at the same exit, of the same token.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from eecompile_training.policy.records import Double, Played

Scaling = Literal["group", "batch", "none"]
EPSILON: Final = 1e-4
NO_SPREAD: Final = 1e-9  # of the rewards of a group that has nothing to teach


def scales(rewards: Sequence[tuple[int, float]], scaling: Scaling) -> dict[int, float]:
    """What the advantages of each group are divided by, from (group, R) of every rollout of the batch.

    group: the standard deviation of the group's own rewards + 1e-4; it cancels the weight of costs where all Q are
    equal. batch: that of all rewards. none: 1. Groups whose rewards are all the same are left out.
    """
    groups = defaultdict[int, list[float]](list)
    for group, reward in rewards:
        groups[group].append(reward)
    spread = {group: float(np.std(found)) for group, found in groups.items()}
    whole = float(np.std([reward for _, reward in rewards])) if rewards else 0.0
    chosen = {"group": spread, "batch": dict.fromkeys(spread, whole)}.get(scaling)
    return {group: 1.0 if chosen is None else chosen[group] + EPSILON for group, s in spread.items() if s > NO_SPREAD}


def advantages(played: Sequence[Played], weight: float, scale: Mapping[int, float]) -> list[Double | None]:
    """(reward-to-go - mean) / scale of each rollout's decisions [N]; None for rollouts of groups without a scale.

    weight: of costs. A decision that no other rollout of its group had to take has an advantage of 0.
    """
    to_go = [one.to_go(weight) for one in played]
    found = defaultdict[tuple[int, int, int], list[float]](list)
    keys = [[(one.group, int(t), int(e)) for t, e in zip(one.token, one.exit, strict=True)] for one in played]
    for mine, values in zip(keys, to_go, strict=True):
        for key, value in zip(mine, values, strict=True):
            found[key].append(float(value))
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    return [
        (values - np.array([mean[key] for key in mine])) / scale[one.group] if one.group in scale else None
        for one, mine, values in zip(played, keys, to_go, strict=True)
    ]
