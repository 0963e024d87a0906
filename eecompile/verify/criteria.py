"""What a head says of its logits, in float64, and when a gate fires: the decision's arithmetic a second time."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c

Double = NDArray[np.float64]
Values = Mapping[str, Double]  # by criterion, each [N]

_BLOCK_ROWS = 16  # rows of logits that are widened to float64 at a time


def criteria_of(logits: NDArray[np.float32]) -> dict[str, Double]:
    """max_prob, margin and entropy (nats), each [N], of logits [N, V], in float64."""
    parts = [_criteria(logits[i : i + _BLOCK_ROWS].astype(np.float64)) for i in range(0, len(logits), _BLOCK_ROWS)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(c.HEAD_CRITERIA)}


def fires(criterion: str, value: Double, threshold: float) -> NDArray[np.bool_]:
    """Strictly bolder than the threshold; NaN never is, nor a confidence above 1."""
    if criterion == "entropy":
        return value < threshold
    bold: NDArray[np.bool_] = value > threshold
    return bold & (value <= 1) if criterion == "learned" else bold


def _criteria(logits: Double) -> tuple[Double, Double, Double]:
    top = np.partition(logits, -2, axis=1)[:, -2:]
    shifted = logits - top[:, 1:]
    weights = np.exp(shifted)
    total = weights.sum(axis=1)
    entropy = np.log(total) - (weights * shifted).sum(axis=1) / total
    return 1 / total, (1 - np.exp(top[:, 0] - top[:, 1])) / total, entropy
