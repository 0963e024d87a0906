"""How large the inputs of a model's products become over some texts, by the float32 model in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.student.loops import UnrolledStore
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import Student


class _Watching(ReferenceModel):
    """Keeps the largest magnitude that each weight of its layers was multiplied by."""

    def __init__(self, student: Student) -> None:
        super().__init__(student.spec, student.store, student.cycles)
        self.largest: dict[str, float] = {}

    def _project(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        if name != self.spec.head_weight:
            self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(x).max()))
        return super()._project(x, name)


def largest_inputs(student: Student, samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """The largest magnitude in the inputs of each projection of the layers, by the name of its weight in the checkpoint.

    samples: token ids of texts, each run from its beginning. Layers that run several times count every run.
    Memory: one weight matrix and one text at a time.
    """
    model = _Watching(student)
    for ids in samples:
        model.run(ids, [])
    own = student.store.names if isinstance(student.store, UnrolledStore) else {}
    found: dict[str, float] = {}
    for name, value in model.largest.items():
        found[own.get(name, name)] = max(found.get(own.get(name, name), 0.0), value)
    return found
