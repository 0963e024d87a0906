"""What fitting keeps of the documents: sums for linear maps, and a sample of the rows themselves on disk."""

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.tables import Float

Double = NDArray[np.float64]

RIDGE: Final = 1e-2  # of the mean square of a dimension of the rows


class NormalEquations:
    """Sums over rows for a linear map with bias: memory (D + 1) x (2 D + 1) float64, whatever the number of rows."""

    def __init__(self, size: int) -> None:
        self.gram: Double = np.zeros((size + 1, size + 1))
        self.cross: Double = np.zeros((size + 1, size))

    def add(self, x: Float, y: Float) -> None:
        """Take in rows x [N, D] and their targets y [N, D]."""
        extended = np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
        self.gram += extended.T @ extended
        self.cross += extended.T @ y.astype(np.float64)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        total = NormalEquations(len(self.gram) - 1)
        total.gram, total.cross = self.gram + other.gram, self.cross + other.cross
        return total

    def solve(self, ridge: float = RIDGE) -> tuple[Float, Float]:
        """Weight [D, D] and bias [D] that minimise |x W + b - y|^2 + penalty |W - I|^2; the bias is free.

        ridge: the penalty as a share of the mean diagonal of the rows' Gram matrix.
        """
        size = len(self.gram) - 1
        penalty = np.full(size + 1, ridge * max(float(np.trace(self.gram[:size, :size])) / size, 1e-12))
        penalty[size] = 1e-9 * self.gram[size, size]
        identity = np.eye(size + 1, size)
        solved = identity + np.linalg.solve(self.gram + np.diag(penalty), self.cross - self.gram @ identity)
        return solved[:size].astype(np.float32), solved[size].astype(np.float32)


class RowCache:
    """Up to `capacity` rows of [exits, D] on disk as float16, drawn uniformly from all that were offered (a reservoir).

    final [n]: the full model's token of each kept row; document [n]: the number of its document.
    """

    def __init__(self, folder: Path, capacity: int, exits: int, size: int, seed: int) -> None:
        self._capacity, self._offered = capacity, 0
        folder.mkdir(exist_ok=True)
        with open(folder / "rows.f16", "wb") as file:
            file.truncate(2 * capacity * exits * size)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would be a crash on writing
                os.posix_fallocate(file.fileno(), 0, 2 * capacity * exits * size)
        self._rows = np.memmap(folder / "rows.f16", np.float16, "r+", shape=(capacity, exits, size))
        self._final, self._document = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self._random = np.random.default_rng(seed)

    def offer(self, rows: Float, final: NDArray[np.int64], document: int) -> None:
        """Take rows [N, exits, D] of one document, or some of them (Vitter's algorithm R)."""
        number = np.arange(self._offered, self._offered + len(rows))
        drawn = self._random.integers(0, number + 1)
        place = np.where(number < self._capacity, number, drawn)
        kept = place < self._capacity
        limit = np.finfo(np.float16).max
        self._rows[place[kept]] = np.clip(rows[kept], -limit, limit)
        self._final[place[kept]], self._document[place[kept]] = final[kept], document
        self._offered += len(rows)

    def __len__(self) -> int:
        return min(self._offered, self._capacity)

    def exit_rows(self, exit_: int) -> NDArray[np.float16]:
        """The kept rows of one exit [n, D], on disk."""
        return self._rows[: len(self), exit_]

    @property
    def final(self) -> NDArray[np.int64]:
        return self._final[: len(self)]

    @property
    def document(self) -> NDArray[np.int64]:
        return self._document[: len(self)]
