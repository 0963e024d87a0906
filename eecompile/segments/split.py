"""Cut a student at its exits into segment, exit, embed and head graphs, and the uncut graph to hold them against."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from eecompile import contract as c
from eecompile.schema import GraphInfo
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.encoder_decoder import CrossDecoderWriter, write_encoder
from eecompile.segments.exits import write_exit
from eecompile.segments.graph import GraphWriter
from eecompile.segments.heads import write_small_head
from eecompile.segments.outer import decide, head_logits, write_embed, write_head
from eecompile.segments.propagate import write_kv_graph
from eecompile.segments.weights import WeightBook
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.student import Student

REFERENCE = "reference.onnx"


@dataclass(frozen=True)
class WrittenGraphs:
    """What `write_segments` wrote; `hashes` are SHA-256 of the weight files by path in the bundle. `kv[i]` is segment
    i's K/V-only graph: none for the first, which no token skips, and none at all unless asked for."""

    embed: GraphInfo
    segments: list[GraphInfo]
    exits: list[GraphInfo]
    head: GraphInfo
    heads: list[GraphInfo]
    reference: GraphInfo | None
    encoder: GraphInfo | None
    hashes: dict[str, str]
    kv: list[GraphInfo | None] = field(default_factory=list)


def cuts(layers: int, exits: list[int]) -> list[range]:
    """The layers of each segment: [18, 22] of 30 gives 0..17, 18..21, 22..29."""
    edges = [0, *exits, layers]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def write_segments(
    student: Student,
    root: Path,
    *,
    precision: str,
    context: int,
    slack: int = c.SLACK,
    fused: bool = False,
    propagate: bool = False,
    cache: str = "fp32",
    progress: Callable[[str], None] = lambda stage: None,
) -> WrittenGraphs:
    """Write every graph and its weights under root/segments; call `progress` before each with its name.

    fused: with ONNX Runtime's fused operators, for bundles of one slot that only it will run. propagate: also the
    K/V-only graphs of the segments that a token can skip. cache: what keys and values are kept in.

    Memory: one weight matrix in its final precision and 16 MiB of its source at a time.
    """
    folder = root / "segments"
    folder.mkdir(parents=True, exist_ok=True)
    book = WeightBook(folder)
    d = _writer(student, precision, context, slack, fused, cache)

    progress("embed")
    g = GraphWriter("embed", book)
    g.output(write_embed(g, d), c.HIDDEN_OUT, "float32", "B", "R", d.spec.hidden)
    embed = g.save(folder / "embed.onnx")
    encoder = None
    if isinstance(d, CrossDecoderWriter):
        progress("encoder")
        g = GraphWriter("encoder", book)
        write_encoder(g, d)
        encoder = g.save(folder / "encoder.onnx", layers=d.spec.encoder.layers)
    segments, kv = [], list[GraphInfo | None]()
    pieces = cuts(d.spec.layers, [e.layer for e in student.exits.schema.exits])
    for k, layers in enumerate(pieces):
        progress(f"segment {k}")
        segments.append(_write_segment(d, book, folder, k, layers))
        if propagate:
            kv.append(write_kv_graph(d, book, folder, k, layers) if k else None)
    exits = []
    for k, exit_ in enumerate(student.exits.schema.exits):
        progress(f"exit {k}")
        exits.append(_write(book, folder, f"exit_{k}", partial(write_exit, d=d, exits=student.exits, exit_=exit_)))
    progress("head")
    head = _write(book, folder, "head", partial(write_head, d=d))
    heads = []
    for small in student.exits.schema.heads:
        progress(f"head {small.name}")
        write = partial(write_small_head, d=d, exits=student.exits, head=small)
        heads.append(_write(book, folder, f"head_{small.name}", write))
    reference = write_reference(d, book, root, pieces)
    book.close()
    hashes = {f"segments/{f}": h for f, h in book.hashes.items()}
    return WrittenGraphs(embed, segments, exits, head, heads, reference, encoder, hashes, kv)


def _writer(student: Student, precision: str, context: int, slack: int, fused: bool, cache: str) -> DecoderWriter:
    if isinstance(student.spec, EncoderDecoderSpec):
        return CrossDecoderWriter(student.spec, student.store, precision, context, slack, fused, cache=cache)
    return DecoderWriter(student.spec, student.store, precision, context, slack, fused, cache=cache)


def _write(book: WeightBook, folder: Path, name: str, write: Callable[[GraphWriter], None]) -> GraphInfo:
    g = GraphWriter(name, book)
    write(g)
    return g.save(folder / f"{name}.onnx")


def _write_segment(d: DecoderWriter, book: WeightBook, folder: Path, k: int, layers: range) -> GraphInfo:
    g = GraphWriter(f"segment_{k}", book)
    x = g.input(c.HIDDEN, "float32", "B", "R", d.spec.hidden)
    d.inputs(g)
    for cache, layer in enumerate(layers):
        x = d.layer(g, x, layer, cache)
    if layers.stop == d.spec.layers:
        x = d.norm(g, x, d.spec.names.norm)
    d.finish(g)
    g.output(x, c.HIDDEN_OUT, "float32", "B", "R", d.spec.hidden)
    return g.save(folder / f"segment_{k}.onnx", layers=len(layers))


def write_reference(d: DecoderWriter, book: WeightBook, root: Path, pieces: list[range]) -> GraphInfo:
    """The uncut model, from token ids to decision, on the same weight files: what a bundle is compared with.

    No operator is fused across the edges of `pieces`, so that the chain computes the same bits.
    """
    g = GraphWriter("reference", book, prefix="segments/")
    x = write_embed(g, d)
    d.inputs(g)
    for layers in pieces:
        for layer in layers:
            x = d.layer(g, x, layer, layer)
        if layers.stop == d.spec.layers:
            x = d.norm(g, x, d.spec.names.norm)
        d.finish(g)
    flat = g.op("Reshape", x, g.constant([-1, d.spec.hidden]))
    g.input(c.THRESHOLDS, "float32", "N", 3)
    decide(g, head_logits(g, d, flat), d.spec.vocab)
    return g.save(root / REFERENCE, layers=d.spec.layers, relative=REFERENCE)
