"""How large the inputs of a model's products become over some texts, by the float32 model in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.student.loops import UnrolledStore
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import Student

Float = NDArray[np.float32]


class _Watching(ReferenceModel):
    """Keeps the largest magnitude that each input of its layers' products had, by the weight."""

    def __init__(self, student: Student) -> None:
        super().__init__(student.spec, student.store, student.cycles)
        self.largest: dict[str, Float] = {}

    def _project(self, x: Float, name: str) -> Float:
        _note(self.largest, name, np.abs(x).max(axis=0))
        return super()._project(x, name)

    def logits(self, finished: Float) -> Float:
        """None: the head is no product of the layers."""
        return finished[:0]


def largest_inputs(student: Student, samples: Sequence[Sequence[int]]) -> dict[str, Float]:
    """The largest magnitudes [in] of the inputs of the layers' projections, by their weights' names in the checkpoint.

    samples: token ids of texts, each run from its beginning. Layers that run several times count every run.
    Memory: one weight matrix and one text at a time.
    """
    model = _Watching(student)
    for ids in samples:
        model.run(ids, [])
    own = student.store.names if isinstance(student.store, UnrolledStore) else {}
    found: dict[str, Float] = {}
    for name, sizes in model.largest.items():
        _note(found, own.get(name, name), sizes)
    return found


def _note(largest: dict[str, Float], name: str, sizes: Float) -> None:
    largest[name] = np.maximum(largest[name], sizes) if name in largest else sizes
