"""The cyclic gates of a schedule's steps, from the bundle's files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.manifest import Manifest

Float = NDArray[np.float32]


@dataclass(frozen=True)
class CycleGate:
    """Repeats a step for a row whose sigmoid(h . weight + bias) is below `threshold`; think, weight [D], bias."""

    threshold: float
    repeats: int
    think: Float
    weight: Float
    bias: float

    def value(self, row: Float) -> float:
        """The gate's value for row [D]. NaN, of a row that is not finite, is below nothing."""
        score = float(np.add.reduce(row * self.weight, dtype=np.float64)) + self.bias
        return float(1 / (1 + np.exp(-np.clip(score, -700, 700))))


def read_cycles(root: Path, manifest: Manifest) -> dict[int, CycleGate]:
    """The gates by the number of their step."""
    found: dict[int, CycleGate] = {}
    width = manifest.model.hidden
    for k, step in enumerate(manifest.schedule):
        if step.cycle is not None:
            values = np.fromfile(root / step.cycle.weights, "<f4").astype(np.float32)
            think, weight, bias = values[:width], values[width : 2 * width], float(values[-1])
            found[k] = CycleGate(step.cycle.threshold, step.cycle.repeats, think, weight, bias)
    return found
