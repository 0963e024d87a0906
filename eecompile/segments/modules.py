"""The module of an exit that has one, in the exit's graph: an MLP block, or a decoder layer with a cache."""

from dataclasses import replace

from eecompile import contract as c
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.student.exits import ExitSpec, StudentExits
from eecompile.student.modules import module_spec


def write_module(g: GraphWriter, d: DecoderWriter, exits: StudentExits, exit_: ExitSpec) -> tuple[str, str]:
    """Declare the exit's inputs and write its module; returns the rows at the exit [N, D] and what it makes of them,
    normalised, [N, D].

    An "mlp" takes hidden [N, D]; a "layer" takes what a segment takes, hidden [B, R, D], since every row attends to
    those before it. Weights are in the build's precision, float16 in one of 8-bit products.
    """
    assert exits.store is not None  # check_modules saw to it
    spec, last = module_spec(d.spec, exit_.layer), d.spec.layers - 1
    own = replace(d, spec=spec, store=exits.store, low_rank=None, masks={}, group_query=None, largest={})
    if exit_.adapter == "mlp":
        rows = g.input(c.HIDDEN, "float32", "N", spec.hidden)
        x = own.mlp_block(g, rows, last)
    else:
        rows = g.input(c.HIDDEN, "float32", "B", "R", spec.hidden)
        own.inputs(g)
        x = own.layer(g, rows, last, 0)
    normed = own.norm(g, x, spec.names.norm)
    own.finish(g)
    if exit_.adapter == "mlp":
        return rows, normed
    flat = g.constant([-1, spec.hidden])
    return g.op("Reshape", rows, flat), g.op("Reshape", normed, flat)
