"""Small heads fitted in closed form: the most frequent tokens, or the best product of two thin matrices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.rows import NormalEquations
from eecompile.calibrate.tables import Float
from eecompile.shapes import HeadShape
from eecompile.student.finish import LogitFinish
from eecompile.student.store import WeightStore
from eecompile.student.student import Student

Double = NDArray[np.float64]
Translated: TypeAlias = tuple[NormalEquations, tuple[Float, Float]]  # an exit's sums, and its translator


@dataclass(frozen=True)
class HeadMatrix:
    """The model's head [V, D], on disk, and what makes logits of its products."""

    store: WeightStore
    name: str
    finish: LogitFinish

    @classmethod
    def of(cls, student: Student) -> "HeadMatrix":
        """The head of a student."""
        return cls(student.store, student.spec.head_weight, LogitFinish.of_model(student.spec, student.store))

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, D)."""
        return self.store.tensors[self.name].shape

    def chunks(self) -> Iterator[tuple[int, Float]]:
        """(first row, rows), some megabytes at a time."""
        return self.store.chunks(self.name)

    def rows(self, tokens: NDArray[np.int64]) -> Float:
        """The rows of these tokens [n, D]."""
        out = np.empty((len(tokens), self.shape[1]), np.float32)
        for start, rows in self.chunks():
            here = (tokens >= start) & (tokens < start + len(rows))
            out[here] = rows[tokens[here] - start]
        return out


@dataclass(frozen=True)
class SmallHead:
    """A head, its tensors by part as early_exit.safetensors has them (none of a shortlist), `ids`, the token of each of
    its logits, and `finish`, which makes them of its affine map."""

    shape: HeadShape
    tensors: dict[str, Float]
    down: Float
    up: Float
    bias: Float
    ids: NDArray[np.int64]
    finish: LogitFinish

    def logits(self, x: Float) -> Float:
        """Of rows x [N, D], ready for a head: [N, its tokens]."""
        return self.finish(np.asarray((x @ self.down) @ self.up + self.bias, np.float32))

    def tokens(self, x: Float) -> NDArray[np.int64]:
        """Its answers [N]."""
        return np.asarray(self.ids[self.logits(x).argmax(axis=1)], np.int64)


def fit_shortlist(matrix: HeadMatrix, counts: NDArray[np.int64], tokens: int) -> SmallHead:
    """The `tokens` most frequent tokens by `counts` [V], of equally frequent ones those of lower ids."""
    size = min(tokens, len(counts))
    chosen = np.sort(np.argsort(-counts, kind="stable")[:size])
    shape = HeadShape(name="shortlist", kind="shortlist", tokens=chosen.tolist())
    rows = matrix.rows(chosen)
    same, nothing = np.eye(rows.shape[1], dtype=np.float32), np.zeros(size, np.float32)
    return SmallHead(shape, {}, same, rows.T.copy(), nothing, chosen, matrix.finish.of_tokens(chosen))


def fit_low_rank(matrix: HeadMatrix, exits: Sequence[Translated], rank: int) -> SmallHead:
    """The affine map of rank `rank` with the least square error of the head's product, over what the translators give.

    That is the least error of the logits, too, unless the model bounds them; its scale, bias and bound follow the map.

    With mean m and covariance C = L L^T of those rows the error of H (x - m), H the head [V, D], is least on the
    leading left singular directions of L^T H^T: the eigenvectors of L^T (H^T H) L, [D, D] whatever the vocabulary.
    """
    mean, covariance = _moments(exits)
    size = len(mean)
    root = np.linalg.cholesky(covariance + 1e-6 * max(float(np.trace(covariance)) / size, 1e-12) * np.eye(size))
    gram = sum((rows.T @ rows for _, rows in matrix.chunks()), np.zeros((size, size), np.float64))
    _, vectors = np.linalg.eigh(root.T @ gram @ root)
    leading = vectors[:, ::-1][:, : min(rank, size)]
    down = np.linalg.solve(root.T, leading)  # [D, rank]
    lift = (root @ leading).astype(np.float32)
    up = np.concatenate([rows @ lift for _, rows in matrix.chunks()])  # [V, rank]
    centre = np.concatenate([rows @ mean.astype(np.float32) for _, rows in matrix.chunks()])
    bias = (centre - up @ (mean @ down)).astype(np.float32)
    shape = HeadShape(name="low_rank", kind="low_rank", rank=leading.shape[1], bias=True)
    tensors = {"down": down.T.astype(np.float32), "up": up, "bias": bias}
    return SmallHead(shape, tensors, tensors["down"].T.copy(), up.T.copy(), bias, np.arange(len(up)), matrix.finish)


def _moments(exits: Sequence[Translated]) -> tuple[Double, Double]:
    """Mean [D] and covariance [D, D] of the translated rows of all exits."""
    size = len(exits[0][1][1])
    total, square, count = np.zeros(size), np.zeros((size, size)), 0.0
    for sums, (weight, bias) in exits:
        extended = np.concatenate([weight, bias[None]]).astype(np.float64)
        total += sums.gram[-1] @ extended
        square += extended.T @ sums.gram @ extended
        count += sums.gram[-1, -1]
    mean = total / count
    return mean, square / count - np.outer(mean, mean)
