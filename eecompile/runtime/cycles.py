"""Cyclic gates at run time: which rows of a pass run their block again, in the order that makes a pass of several rows
give what passes of one row give.

A row that runs again changes its keys and values, which later rows of the pass have read: those run again after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.cycles import CycleGate

Rows = NDArray[np.float32]
RunRows = Callable[[Rows, int], Rows]


@dataclass(frozen=True)
class Repeater:
    """One step's gate."""

    gate: CycleGate

    def settle(self, inputs: Rows, out: Rows, run: RunRows) -> None:
        """Bring out [R, D], what the block made of inputs [R, D], to each row's last run.

        run: runs the block on rows [N, D] of which the first is the pass's row of that number, and returns [N, D].
        """
        inputs = inputs.copy()
        for row in range(len(out)):
            ran = 0
            while ran < self.gate.repeats and self.gate.value(out[row]) < self.gate.threshold:
                out[row] = run(out[row : row + 1] + self.gate.think, row)[0]
                ran += 1
            if ran and row + 1 < len(out):
                out[row + 1 :] = run(inputs[row + 1 :], row + 1)
