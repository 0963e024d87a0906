"""Shapes and ranges for inputs that are made up: values that index something have to be valid together."""

from collections.abc import Mapping

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.schema import GraphInfo

ROWS = 4
_SYMBOLS: Mapping[str, int] = {"B": 1, "R": ROWS, "N": ROWS, "T": c.CACHE_BUCKET, "E": c.CACHE_BUCKET}


def input_shapes(info: GraphInfo) -> dict[str, list[int]]:
    """A size for every dimension of a graph's inputs, by name."""
    return {t.name: [_SYMBOLS[n] if isinstance(n, str) else n for n in t.shape] for t in info.inputs}


def input_ranges(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """The least and the greatest value of inputs that index something, by name."""
    return {
        c.TOKEN_IDS: (0, manifest.model.vocab - 1),
        c.POSITIONS: (0, ROWS - 1),
        c.WRITE_INDEX: (0, 0),
        c.KEY_POSITIONS: (0, 0),
        c.SOURCE_LENGTH: (1, c.CACHE_BUCKET),
    }
