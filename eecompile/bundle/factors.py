"""The LoRA factors of a schedule's steps, from the bundle's files to arrays by graph input."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest, factor_shapes

Factors = Mapping[str, NDArray[np.float32]]


def read_factors(root: Path, manifest: Manifest) -> list[Factors]:
    """For each step of the schedule what its segment's LoRA inputs take; empty where it has none."""
    found: list[Factors] = []
    for step in manifest.schedule:
        shapes = factor_shapes(manifest.graphs.segments[step.segment])
        arrays: dict[str, NDArray[np.float32]] = {}
        if step.factors is not None:
            ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
            parts = np.split(np.fromfile(root / step.factors, "<f4"), ends[:-1])
            for (name, shape), part in zip(shapes.items(), parts, strict=True):
                arrays[name] = part.reshape(shape).astype(np.float32)
        found.append(arrays)
    return found


def uncut_factors(manifest: Manifest, factors: Sequence[Factors]) -> dict[str, NDArray[np.float32]]:
    """The same by the inputs of the uncut graph, where a layer has the number that it runs as."""
    found: dict[str, NDArray[np.float32]] = {}
    first = 0
    for step, arrays in zip(manifest.schedule, factors, strict=True):
        for name, array in arrays.items():
            part, layer, projection = name.removeprefix(c.LORA).split("_")
            found[c.low_rank_name(part, first + int(layer), projection)] = array
        first += manifest.caches[step.cache]
    return found
