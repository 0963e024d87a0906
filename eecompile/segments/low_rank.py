"""A loop's LoRA in a graph that all loops share: its factors are inputs, bound for each step of the schedule.

A product with a weight that is an input takes another kernel for a lone row than for several (a constant weight does
not), whose last bits differ; so the rows get one of padding, as in fused attention. And it adds up in steps whose
length depends on how many columns a thread has, which depends on the rows. A thread never has less than PANEL columns,
so that A is given as panels of that many, one product each; they also lie in memory as they are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.segments.graph import GraphWriter
from eecompile.student.loops import Loops, Part, factor_name
from eecompile.student.model import DecoderSpec, Shapes
from eecompile.student.store import WeightStore

PANEL = 16


@dataclass
class LowRank:
    """Writes the LoRA of one recursive model's block. `inputs` has, by the name of an input of the current graph, the
    projection and the part that it takes."""

    spec: DecoderSpec
    loops: Loops
    inputs: dict[str, tuple[str, Part]] = field(default_factory=dict)
    _roles: Mapping[str, str] = field(default_factory=dict)
    _shapes: Shapes = field(default_factory=dict)
    _number: int = 0

    def enter(self, layer: int, number: int) -> None:
        """Say which of the checkpoint's layers is written next, as which of the graph's."""
        self._roles, self._shapes = self.loops.adapted(self.spec, layer), self.spec.layer_shapes(layer)
        self._number = number

    def add(self, g: GraphWriter, x: str, out: str, names: Sequence[str]) -> str:
        """out [B, R, sum of out], the product of x [B, R, in] and the projections `names`, plus their LoRA."""
        if not any(name in self._roles for name in names):
            return out
        padded = g.op("Pad", x, g.constant([0, 0, 0, 0, 1, 0]))
        if self.loops.rank > PANEL:
            padded = g.op("Unsqueeze", padded, g.constant([1]))
        parts: list[str] = []
        gap = 0
        for name in names:
            width, inputs = self._shapes[f"{name}.weight"]
            if name in self._roles:
                parts.append(_shifted(g, self._product(g, padded, name, width, inputs), gap, 0))
                gap = 0
            else:
                gap += width
        parts[-1] = _shifted(g, parts[-1], 0, gap)
        whole = parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=-1)
        return g.op("Add", out, g.op("Slice", whole, g.constant([0]), g.constant([-1]), g.constant([1])))

    def _product(self, g: GraphWriter, x: str, name: str, width: int, inputs: int) -> str:
        """x [B, R, in], with panels [B, 1, R, in], times A and B: [B, R, width]."""
        rank = self.loops.rank
        if rank <= PANEL:
            inner = g.op("MatMul", x, self._input(g, name, "a", inputs, rank))
            return g.op("MatMul", inner, self._input(g, name, "b", rank, width))
        panels = -(-rank // PANEL)
        inner = g.op("MatMul", x, self._input(g, name, "a", panels, inputs, PANEL))
        rows = g.op("Transpose", inner, perm=[0, 2, 1, 3])
        rows = g.op("Reshape", rows, g.constant([0, 0, panels * PANEL]))
        return g.op("MatMul", rows, self._input(g, name, "b", panels * PANEL, width))

    def _input(self, g: GraphWriter, name: str, part: Part, *shape: int) -> str:
        factor = g.input(c.low_rank_name(part, self._number, self._roles[name]), "float32", *shape)
        self.inputs[factor] = (name, part)
        return factor


def factor_bytes(inputs: Mapping[str, tuple[str, Part]], loop: int, store: WeightStore) -> bytes:
    """What a step of `loop` binds to the inputs of its segment: float32 little-endian, one after another in order."""
    return b"".join(
        as_input(store.read(factor_name(loop, name, part)), part).astype("<f4").tobytes()
        for name, part in inputs.values()
    )


def as_input(factor: NDArray[np.float32], part: Part) -> NDArray[np.float32]:
    """A [rank, in] or B [out, rank] as a graph takes it: [in, rank] and [rank, out]. A rank above PANEL is filled up
    with zeros to whole panels, and A is [panels, in, PANEL]."""
    rank = factor.shape[0 if part == "a" else 1]
    turned = np.ascontiguousarray(factor.T)
    if rank <= PANEL:
        return turned
    more = -rank % PANEL
    if part == "b":
        return np.pad(turned, ((0, more), (0, 0)))
    panels = np.pad(turned, ((0, 0), (0, more))).reshape(len(turned), -1, PANEL)
    return np.ascontiguousarray(panels.transpose(1, 0, 2))


def _shifted(g: GraphWriter, x: str, before: int, after: int) -> str:
    """x [B, R, n] with zeros around: projections beside it that have no LoRA."""
    return x if before == after == 0 else g.op("Pad", x, g.constant([0, 0, before, 0, 0, after]))
