"""Gates trained in numpy: small classifiers of one or two layers, the backbone frozen.

The learned gate is sigmoid(tanh(n W1 + b1) W2 + b2) and predicts whether an exit agrees, as CALM's confidence
classifier (Schuster et al. 2022); a router is a softmax over depths, a predictor has ReLU in the place of tanh.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float: TypeAlias = NDArray[np.float32]
Bool: TypeAlias = NDArray[np.bool_]
Activation: TypeAlias = Literal["tanh", "relu"]

EPOCHS: Final = 40
PATIENCE: Final = 3  # epochs without a better validation loss
BATCH: Final = 256
RATE: Final = 1e-3
LINEAR_RATE: Final = 1e-2  # of a single layer, whose loss is convex
_CHUNK: Final = 4096


def train_gate(
    rows: NDArray[np.floating], target: NDArray[Any], held_out: Bool, *, units: int = 32, outputs: int = 1,
    activation: Activation = "tanh", seed: int = 0,
) -> dict[str, Float]:  # fmt: skip
    """Gate weights by part: w1 [D, U], b1 [U], w2 [U, C], b2 [C], which read the rows as they are; w2 [D, C] and b2
    where there are no units.

    rows: [N, D], possibly on disk. target: [N], true or false, or one of C = `outputs` classes. held_out: [N], rows
    that only decide when to stop. Adam (Kingma & Ba 2015) on the logistic loss; deterministic for a seed.
    """
    random = np.random.default_rng(seed)
    used, judged = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    data = _Data(rows, target, *_spread(rows, used))
    weights = _initial(rows.shape[1], units, outputs, random)
    adam = _Adam(weights, RATE if units else LINEAR_RATE)
    best, least, waited = _copied(weights), _loss(weights, data, judged, activation), 0
    for _ in range(EPOCHS):
        order = random.permutation(used)
        for start in range(0, len(order), BATCH):
            adam.step(_gradients(weights, *data.batch(np.sort(order[start : start + BATCH])), activation))
        loss = _loss(weights, data, judged, activation)
        best, least, waited = (_copied(weights), loss, 0) if loss < least else (best, least, waited + 1)
        if waited == PATIENCE:
            break
    return _folded(best, data.mean, data.scale)


def gate_scores(
    weights: dict[str, Float], rows: NDArray[np.floating], activation: Activation = "tanh"
) -> Float:  # fmt: skip
    """The logits for each row [N, C], or [N] of a gate with one; its confidence is the sigmoid of it."""
    scores = _inner(weights, rows.astype(np.float32), activation) @ weights["w2"] + weights["b2"]
    return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores, np.float32)


def auc(scores: NDArray[np.floating], positive: Bool) -> float | None:
    """Area under the ROC curve: how often a positive scores above a negative, ties by half; None without both."""
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass(frozen=True)
class _Data:
    """The rows on disk with their targets, and what standardises them."""

    rows: NDArray[np.floating]
    target: NDArray[Any]
    mean: Float
    scale: Float

    def batch(self, rows: NDArray[np.int64]) -> tuple[Float, NDArray[Any]]:
        """Standardised rows [n, D] of these numbers, and their targets [n]."""
        return ((self.rows[rows] - self.mean) / self.scale).astype(np.float32), self.target[rows]


class _Adam:
    """Adam over a dictionary of arrays, which it changes in place."""

    def __init__(self, weights: dict[str, Float], rate: float) -> None:
        self._weights, self._rate, self._steps = weights, rate, 0
        self._first = {name: np.zeros_like(w) for name, w in weights.items()}
        self._second = {name: np.zeros_like(w) for name, w in weights.items()}

    def step(self, gradients: dict[str, Float]) -> None:
        self._steps += 1
        for name, gradient in gradients.items():
            first, second = self._first[name], self._second[name]
            first += np.float32(0.1) * (gradient - first)
            second += np.float32(0.001) * (gradient * gradient - second)
            mean, spread = first / (1 - 0.9**self._steps), second / (1 - 0.999**self._steps)
            self._weights[name] -= (self._rate * mean / (np.sqrt(spread) + 1e-8)).astype(np.float32)


def _initial(size: int, units: int, outputs: int, random: np.random.Generator) -> dict[str, Float]:
    def normal(*shape: int) -> Float:
        return np.asarray(random.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

    if not units:
        return {"w2": np.zeros((size, outputs), np.float32), "b2": np.zeros(outputs, np.float32)}
    return {
        "w1": normal(size, units), "b1": np.zeros(units, np.float32),
        "w2": normal(units, outputs), "b2": np.zeros(outputs, np.float32),
    }  # fmt: skip


def _inner(weights: dict[str, Float], x: Float, activation: Activation) -> Float:
    """What the last layer reads [N, U], or the rows where it is the only one."""
    if "w1" not in weights:
        return x
    z = x @ weights["w1"] + weights["b1"]
    return np.asarray(np.tanh(z) if activation == "tanh" else np.maximum(z, 0), np.float32)


def _gradients(weights: dict[str, Float], x: Float, target: NDArray[Any], activation: Activation) -> dict[str, Float]:
    inner = _inner(weights, x, activation)
    outer = (_excess(inner @ weights["w2"] + weights["b2"], target) / len(x)).astype(np.float32)
    last = {"w2": inner.T @ outer, "b2": outer.sum(axis=0)}
    if "w1" not in weights:
        return last
    slope = 1 - inner * inner if activation == "tanh" else (inner > 0).astype(np.float32)
    back = (outer @ weights["w2"].T) * slope
    return {"w1": x.T @ back, "b1": back.sum(axis=0), **last}


def _excess(score: Float, target: NDArray[Any]) -> Float:
    """The probabilities less what they should be [N, C]: the gradient of the logistic loss by the scores."""
    if score.shape[1] == 1:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * score)) - target[:, None], np.float32)
    weights = np.exp(score - score.max(axis=1, keepdims=True))
    probability = weights / weights.sum(axis=1, keepdims=True)
    probability[np.arange(len(target)), target] -= 1
    return np.asarray(probability, np.float32)


def _loss(weights: dict[str, Float], data: _Data, judged: NDArray[np.int64], activation: Activation) -> float:
    total = 0.0
    for chunk in _chunks(judged):
        x, target = data.batch(chunk)
        score = gate_scores(weights, x, activation).astype(np.float64)
        if score.ndim == 1:
            total += float((np.logaddexp(0, score) - score * target).sum())
        else:
            total += float((np.logaddexp.reduce(score, axis=1) - score[np.arange(len(target)), target]).sum())
    return total / max(1, len(judged))


def _spread(rows: NDArray[np.floating], used: NDArray[np.int64]) -> tuple[Float, Float]:
    """Mean and scale of each dimension [D]. The scale of one that hardly moves is held above float16's rounding."""
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for chunk in _chunks(used):
        x = rows[chunk].astype(np.float64)
        total, squares = total + x.sum(axis=0), squares + (x * x).sum(axis=0)
    mean, power = total / len(used), squares / len(used)
    scale = np.sqrt(np.maximum(power - mean**2, 0)) + 1e-3 * np.sqrt(power) + 1e-6
    return mean.astype(np.float32), scale.astype(np.float32)


def _folded(weights: dict[str, Float], mean: Float, scale: Float) -> dict[str, Float]:
    """The same gate on rows that are not standardised first."""
    first, offset = ("w1", "b1") if "w1" in weights else ("w2", "b2")
    folded = weights[first] / scale[:, None]
    return {**weights, first: folded, offset: weights[offset] - mean @ folded}


def _copied(weights: dict[str, Float]) -> dict[str, Float]:
    return {name: w.copy() for name, w in weights.items()}


def _chunks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
