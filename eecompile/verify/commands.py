"""Polygraphy command lines that load a bundle's graphs one by one and run them on made-up inputs."""

from collections.abc import Mapping
from importlib.util import find_spec

from eecompile import contract as c
from eecompile.runtime import Bundle
from eecompile.schema import GraphInfo

ROWS = 4
_SYMBOLS: Mapping[str, int] = {"B": 1, "R": ROWS, "N": ROWS, "T": c.CACHE_BUCKET, "E": c.CACHE_BUCKET}
_RANGES = {  # inputs that index something: values that are valid together
    c.TOKEN_IDS: (0, 0),
    c.POSITIONS: (0, ROWS - 1),
    c.WRITE_INDEX: (0, 0),
    c.KEY_POSITIONS: (0, 0),
    c.SOURCE_LENGTH: (1, c.CACHE_BUCKET),
}


def polygraphy_commands(bundle: Bundle) -> tuple[str, ...]:
    """`polygraphy run` for each graph with ONNX Runtime; empty where Polygraphy is not installed."""
    if find_spec("polygraphy") is None:
        return ()
    graphs = bundle.manifest.graphs
    encoder = [] if graphs.encoder is None else [graphs.encoder]
    chain = (graphs.embed, *encoder, *graphs.segments, *graphs.exits, graphs.head)
    return tuple(_command(bundle, info) for info in chain)


def _command(bundle: Bundle, info: GraphInfo) -> str:
    shapes, ranges = [], []
    for tensor in info.inputs:
        sizes = [str(_SYMBOLS[size] if isinstance(size, str) else size) for size in tensor.shape]
        shapes.append(f"{tensor.name}:[{','.join(sizes)}]")
        if tensor.name in _RANGES:
            low, high = _RANGES[tensor.name]
            ranges.append(f"{tensor.name}:[{low},{high}]")
    values = f" --val-range {' '.join(ranges)}" if ranges else ""
    return f"polygraphy run {bundle.files.path / info.path} --onnxrt --input-shapes {' '.join(shapes)}{values}"
