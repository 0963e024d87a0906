"""Polygraphy command lines that load a bundle's graphs one by one and run them on made-up inputs."""

import shlex
from importlib.util import find_spec

from eecompile.runtime import Bundle
from eecompile.schema import GraphInfo
from eecompile.verify.made_up import input_ranges, input_shapes


def polygraphy_commands(bundle: Bundle) -> tuple[str, ...]:
    """`polygraphy run` for each graph with ONNX Runtime, and for the segments against the uncut graph; empty where
    Polygraphy is not installed."""
    if find_spec("polygraphy") is None:
        return ()
    graphs = bundle.manifest.graphs
    encoder = [] if graphs.encoder is None else [graphs.encoder]
    chain = (graphs.embed, *encoder, *graphs.segments, *graphs.exits, graphs.head)
    uncut = [] if graphs.reference is None else [chain_command(bundle, graphs.reference)]
    return (*(_command(bundle, info) for info in chain), *uncut)


def chain_command(bundle: Bundle, uncut: GraphInfo) -> str:
    """The segments against the uncut graph, in ONNX Runtime both."""
    root = bundle.files.path
    return shlex.join(
        ["polygraphy", "run", str(root / uncut.path), "--eecompile", "--eecompile-bundle", str(root), "--onnxrt"]
    )


def _command(bundle: Bundle, info: GraphInfo) -> str:
    every = input_ranges(bundle.manifest)
    shapes = [f"{name}:[{','.join(map(str, shape))}]" for name, shape in input_shapes(info).items()]
    ranges = [f"{t.name}:[{every[t.name][0]},{every[t.name][1]}]" for t in info.inputs if t.name in every]
    values = ["--val-range", *ranges] if ranges else []
    path = str(bundle.files.path / info.path)
    return shlex.join(["polygraphy", "run", path, "--onnxrt", "--input-shapes", *shapes, *values])
