"""Cyclic gates: a block of layers that a row runs again as long as a gate is not satisfied with what it gives.

The gate reads the row after the block, sigmoid(h . w + b); below its threshold the learned "think" vector is added to
the row and the block runs once more on it, at most `repeats` times. The last run's result, keys and values are the
row's. So a row rests on what earlier rows came to in the end, and is the same in whatever passes they run.

Tensors in early_exit.safetensors: "cycle.<layer>.think" [D], "cycle.<layer>.weight" [D], "cycle.<layer>.bias" [1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import Layer, Probability, Strict
from eecompile.student.model import Shapes
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
PARTS = ("think", "weight", "bias")


class CycleSpec(Strict):
    """A block of the layers from `first` to before `layer`, counted as exits are: it ends after `layer` layers."""

    first: Layer
    layer: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    threshold: Probability = 0.4
    repeats: Annotated[int, Field(ge=1, le=c.MAX_REPEATS)] = 1

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        if self.first >= self.layer:
            raise ValueError("a block begins before it ends")
        return self

    def shapes(self, hidden: int) -> Shapes:
        """The tensors that it needs."""
        return {f"cycle.{self.layer}.{part}": (1,) if part == "bias" else (hidden,) for part in PARTS}


@dataclass(frozen=True)
class Cycle:
    """A cyclic gate with its tensors: think [D], weight [D], bias [1]."""

    spec: CycleSpec
    think: Float
    weight: Float
    bias: Float

    def value(self, row: Float) -> float:
        """The gate's probability that row [D] is good enough."""
        score = float(np.add.reduce(row * self.weight, dtype=np.float64)) + float(self.bias[0])
        return float(1 / (1 + np.exp(-np.clip(score, -700, 700))))


def read_cycles(cycles: Sequence[CycleSpec], store: WeightStore | None) -> list[Cycle]:
    """The gates of a student that `check_cycles` let through."""
    if not cycles:
        return []
    assert store is not None
    return [Cycle(s, *(store.read(f"cycle.{s.layer}.{part}") for part in PARTS)) for s in cycles]


def check_cycles(
    cycles: Sequence[CycleSpec], store: WeightStore | None, exits: Sequence[int], layers: int, hidden: int
) -> None:
    """Raise UsageError unless the blocks are apart, in the model, without an exit inside, and have their tensors."""
    ends = 0
    for cycle in cycles:
        if not ends <= cycle.first < cycle.layer <= layers:
            raise UsageError(
                f"the block of layers {cycle.first} to {cycle.layer} overlaps another or is outside {layers} layers",
                where=c.EARLY_EXIT,
                mend="list blocks in order, each once",
            )
        if inside := [n for n in exits if cycle.first < n < cycle.layer]:
            raise UsageError(f"exit {inside[0]} is inside a block that repeats by a gate", where=c.EARLY_EXIT)
        ends = cycle.layer
    shapes = {name: shape for cycle in cycles for name, shape in cycle.shapes(hidden).items()}
    if store is None:
        if shapes:
            raise UsageError("the cyclic gates have no weights", where=c.EARLY_EXIT)
        return
    store.require(shapes)
    bad = [name for name in shapes if not np.isfinite(store.read(name)).all()]
    if bad:
        raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="train the gates again")
