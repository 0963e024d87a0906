"""Recursive models: a block of layers that runs several times, its weights stored once.

A relaxed recursive transformer (Bae et al., "Relaxed Recursive Transformers", 2024, section 2) runs a checkpoint's
layers as prelude, block, block, .., coda; each loop may add low-rank matrices of its own to the block's projections
(LoRA): W + B A, with A [rank, in] and B [out, rank], any scale merged into them.

Every stage but the graph writer sees such a model unrolled: `layers` counts layers as they run, and layer n's weights
are found under layer n's names, with its loop's low-rank part added.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import Layer, Strict
from eecompile.student.model import DecoderSpec, Shapes
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
Part = Literal["a", "b"]
Factors = Mapping[str, tuple[Float, Float]]  # by a weight's name: A [rank, in], B [out, rank]


class Loops(Strict):
    """`schedule` of early_exit.json: the first `prelude` layers run once, the next `block` layers `loops` times, the
    rest once. `rank` is that of each loop's LoRA on `projections` (0: none)."""

    prelude: Layer
    block: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    loops: Annotated[int, Field(ge=2, le=c.MAX_LOOPS)]
    rank: Annotated[int, Field(ge=0, le=c.MAX_RANK)] = 0
    projections: Annotated[list[Projection], Field(max_length=7)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rank_and_projections_belong_together(self) -> Self:
        if (self.rank > 0) != bool(self.projections) or len(set(self.projections)) != len(self.projections):
            raise ValueError("a rank above 0 and the projections that have it, each once, belong together")
        return self

    def layers(self, own: int) -> list[int]:
        """The checkpoint's layer that runs as layer 0, 1, ..; `own` is how many the checkpoint has."""
        end = self.prelude + self.block
        return [*range(self.prelude), *list(range(self.prelude, end)) * self.loops, *range(end, own)]

    def loop(self, layer: int) -> int | None:
        """The loop that the layer which runs as `layer` is in."""
        number = (layer - self.prelude) // self.block
        return number if layer >= self.prelude and number < self.loops else None

    def own_layer(self, layer: int) -> int:
        """The checkpoint's layer that runs as `layer`; where `layer` is one past the last, the one past its last."""
        repeats = max(0, layer - self.prelude) // self.block
        return layer - min(repeats, self.loops - 1) * self.block

    def unrolled(self, spec: DecoderSpec) -> DecoderSpec:
        """The model as it runs, of which `spec` describes the checkpoint."""
        order = self.layers(spec.layers)
        return replace(
            spec,
            layers=len(order),
            ropes=tuple(spec.ropes[i] for i in order),
            windows=tuple(spec.windows[i] for i in order),
            scales=tuple(spec.scales[i] for i in order),
        )

    def unrolled_store(self, spec: DecoderSpec, store: WeightStore, factors: Factors) -> "UnrolledStore":
        """The unrolled model's weights; `spec` and `store` are the checkpoint's, `factors` as `factors` gives them."""
        names: dict[str, str] = {}
        for layer, own in enumerate(self.layers(spec.layers)):
            names |= dict(zip(spec.layer_shapes(layer), spec.layer_shapes(own), strict=True))
        return UnrolledStore(store.directory, store.tensors, own=store, names=names, factors=factors)

    def adapted(self, spec: DecoderSpec, layer: int) -> dict[str, Projection]:
        """The projections of the checkpoint's layer `layer` that have LoRA, by name."""
        if not self.prelude <= layer < self.prelude + self.block:
            return {}
        return {getattr(spec.names, role).format(i=layer): role for role in self.projections}

    def factor_shapes(self, spec: DecoderSpec) -> Shapes:
        """The LoRA tensors that early_exit.safetensors has to hold, by name (`factor_name`)."""
        shapes: Shapes = {}
        for layer in range(self.prelude, self.prelude + self.block):
            weights = spec.layer_shapes(layer)
            for loop, name in itertools.product(range(self.loops), self.adapted(spec, layer)):
                rows, columns = weights[f"{name}.weight"]
                shapes[factor_name(loop, name, "a")] = (self.rank, columns)
                shapes[factor_name(loop, name, "b")] = (rows, self.rank)
        return shapes

    def factors(self, spec: DecoderSpec, store: WeightStore | None) -> Factors:
        """Every LoRA pair in early_exit.safetensors, by the unrolled name of the weight that it is added to."""
        found: dict[str, tuple[Float, Float]] = {}
        for layer, own in enumerate(self.layers(spec.layers)):
            loop = self.loop(layer)
            for name, role in self.adapted(spec, own).items():
                assert loop is not None
                assert store is not None  # check_loops saw to it
                pair = (store.read(factor_name(loop, name, part)) for part in ("a", "b"))
                found[getattr(spec.names, role).format(i=layer) + ".weight"] = (next(pair), next(pair))
        return found


@dataclass(frozen=True, kw_only=True)
class UnrolledStore(WeightStore):
    """The weights of an unrolled model. names: from its layers' names to those of `own`, the checkpoint."""

    own: WeightStore
    names: Mapping[str, str]
    factors: Factors

    def shape(self, name: str) -> tuple[int, ...]:
        """As WeightStore.shape."""
        return self.own.shape(self.names.get(name, name))

    def chunks(self, name: str) -> Iterator[tuple[int, Float]]:
        """As WeightStore.chunks, with the loop's low-rank part."""
        for start, rows in self.own.chunks(self.names.get(name, name)):
            if name in self.factors:
                a, b = self.factors[name]
                rows = rows + b[start : start + len(rows)] @ a
            yield start, rows


def factor_name(loop: int, projection: str, part: Part) -> str:
    """The tensor of one loop's LoRA on the projection of this (the checkpoint's own) name."""
    return f"loop.{loop}.{projection}.{part}"


def check_loops(loops: Loops, spec: DecoderSpec, store: WeightStore | None) -> None:
    """Raise UsageError unless the block is in the checkpoint that `spec` describes and `store` has every factor."""
    if loops.prelude + loops.block > spec.layers:
        raise UsageError(
            f"a prelude of {loops.prelude} and a block of {loops.block} layers do not fit {spec.layers} layers",
            where=c.EARLY_EXIT,
            mend="`prelude` and `block` are numbers of the checkpoint's own layers",
        )
    if len(loops.layers(spec.layers)) > c.MAX_LAYERS:
        raise UsageError(f"more than {c.MAX_LAYERS} layers would run", where=c.EARLY_EXIT, mend="loop less often")
    if spec.names.positions and not loops.prelude:
        raise UsageError(
            "positions are learned and added before layer 0, which may not repeat", where=c.EARLY_EXIT,
            mend="begin the block at layer 1 or later",
        )  # fmt: skip
    if "gate" in loops.projections and not spec.gated:
        raise UsageError("the model has no gate projection to add LoRA to", where=c.EARLY_EXIT)
    shapes = loops.factor_shapes(spec)
    if shapes and store is None:
        raise UsageError("the schedule has LoRA but there are no weights for it", where=c.EARLY_EXIT)
    if store is not None:
        store.require(shapes)
        bad = [name for name in shapes if not np.isfinite(store.read(name)).all()]
        if bad:
            raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="train the loops again")
