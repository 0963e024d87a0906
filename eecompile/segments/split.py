"""Cut a student at its exits into segment, exit, embed and head graphs, and the uncut graph to hold them against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eecompile import contract as c
from eecompile.schema import GraphInfo
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.encoder_decoder import CrossDecoderWriter, write_encoder
from eecompile.segments.exits import write_exit
from eecompile.segments.graph import GraphWriter
from eecompile.segments.heads import write_small_head
from eecompile.segments.low_rank import LowRank, factor_bytes
from eecompile.segments.outer import decide, head_logits, write_embed, write_head
from eecompile.segments.plan import Plan, Visit, plan_segments
from eecompile.segments.propagate import write_kv_graph
from eecompile.segments.weights import WeightBook
from eecompile.student.cycles import Cycle
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.store import WeightStore
from eecompile.student.student import Student

REFERENCE = "reference.onnx"


@dataclass(frozen=True)
class WrittenGraphs:
    """What `write_segments` wrote; `schedule` are the manifest's steps, `hashes` the SHA-256 of weight files by their
    paths in the bundle. `kv[i]` is segment i's K/V-only graph: none for the first, which no token skips, and none at
    all unless asked for."""

    embed: GraphInfo
    segments: list[GraphInfo]
    exits: list[GraphInfo]
    head: GraphInfo
    heads: list[GraphInfo]
    reference: GraphInfo | None
    encoder: GraphInfo | None
    schedule: list[dict[str, Any]]
    hashes: dict[str, str]
    kv: list[GraphInfo | None] = field(default_factory=list)


def write_segments(
    student: Student,
    root: Path,
    *,
    precision: str,
    context: int,
    slack: int = c.SLACK,
    fused: bool = False,
    propagate: bool = False,
    selected: bool = False,
    cache: str = "fp32",
    progress: Callable[[str], None] = lambda stage: None,
) -> WrittenGraphs:
    """Write every graph and its weights under root/segments; call `progress` before each with its name.

    fused: with ONNX Runtime's fused operators, for bundles of one slot that only it will run. propagate: also the
    K/V-only graphs of the segments that a token can skip. selected: caches may be compact. cache:
    what keys and values are kept in.

    Memory: one weight matrix in its final precision and 16 MiB of its source at a time.
    """
    folder = root / "segments"
    folder.mkdir(parents=True, exist_ok=True)
    book = WeightBook(folder)
    loops = student.loops
    d = _writer(student, precision, context, slack, fused, cache, compact=selected)

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
    cycles = student.cycles
    exits_at = [e.depth for e in student.exits.schema.exits]
    plan = plan_segments(d.spec.layers, exits_at, loops, [cycle.spec for cycle in cycles])
    segments, schedule = _write_chain(d, book, folder, plan, student.exits.store, progress)
    _write_cycles(folder, plan, cycles, schedule)
    kv: list[GraphInfo | None] = []
    if propagate:
        kv = [write_kv_graph(d, book, folder, k, layers) if k else None for k, layers in enumerate(plan.pieces)]
    exits = []
    for k, exit_ in enumerate(student.exits.schema.exits):
        progress(f"exit {k}")
        write = partial(write_exit, d=d, exits=student.exits, exit_=exit_)
        exits.append(_write(book, folder, f"exit_{k}", write, layers=int(exit_.adapter == "layer")))
    progress("head")
    head = _write(book, folder, "head", partial(write_head, d=d))
    heads = []
    for small in student.exits.schema.heads:
        progress(f"head {small.name}")
        write = partial(write_small_head, d=d, exits=student.exits, head=small)
        heads.append(_write(book, folder, f"head_{small.name}", write))
    reference = None if cycles else write_reference(d, book, root, plan)
    book.close()
    hashes = {f"segments/{f}": h for f, h in book.hashes.items()}
    return WrittenGraphs(embed, segments, exits, head, heads, reference, encoder, schedule, hashes, kv)


def _writer(
    student: Student, precision: str, context: int, slack: int, fused: bool, cache: str, *, compact: bool
) -> DecoderWriter:
    spec, store, loops = student.own_spec, student.own_store, student.loops
    if isinstance(spec, EncoderDecoderSpec):
        return CrossDecoderWriter(spec, store, precision, context, slack, fused, cache=cache)
    low_rank = LowRank(spec, loops) if loops is not None and loops.rank else None
    return DecoderWriter(spec, store, precision, context, slack, fused, low_rank, cache=cache, compact=compact)


def _write(
    book: WeightBook, folder: Path, name: str, write: Callable[[GraphWriter], None], layers: int = 0
) -> GraphInfo:
    g = GraphWriter(name, book)
    write(g)
    return g.save(folder / f"{name}.onnx", layers=layers)


def _write_chain(
    d: DecoderWriter, book: WeightBook, folder: Path, plan: Plan, factors: WeightStore | None,
    progress: Callable[[str], None],
) -> tuple[list[GraphInfo], list[dict[str, Any]]]:  # fmt: skip
    """Write each piece once, and what each visit binds to it; returns the graphs and the schedule's steps."""
    segments: list[GraphInfo] = []
    steps: dict[int, dict[str, Any]] = {}
    for k, layers in enumerate(plan.pieces):
        progress(f"segment {k}")
        segments.append(_write_segment(d, book, folder, k, layers, last=k == plan.visits[-1].piece))
        for number, visit in enumerate(plan.visits):
            if visit.piece == k:
                steps[number] = {"segment": k, "cache": number, "exit": visit.exit}
                steps[number] |= _write_factors(d, folder, number, visit, factors)
    return segments, [steps[number] for number in range(len(plan.visits))]


def _write_factors(
    d: DecoderWriter, folder: Path, number: int, visit: Visit, store: WeightStore | None
) -> dict[str, str]:
    """The LoRA of a visit to the piece that was just written."""
    if d.low_rank is None or not d.low_rank.inputs:
        return {}
    assert visit.loop is not None  # only a block that repeats has any
    assert store is not None
    name = f"factors_{number}.weights"
    (folder / name).write_bytes(factor_bytes(d.low_rank.inputs, visit.loop, store))
    return {"factors": f"segments/{name}"}


def _write_cycles(folder: Path, plan: Plan, cycles: Sequence[Cycle], schedule: list[dict[str, Any]]) -> None:
    """Write the cyclic gates' tensors and put the gates into the schedule's steps."""
    by_first = {cycle.spec.first: cycle for cycle in cycles}
    for number, visit in enumerate(plan.visits):
        cycle = by_first.get(visit.first)
        if cycle is None or not plan.pieces[visit.piece]:
            continue
        name = f"cycle_{number}.weights"
        (folder / name).write_bytes(np.concatenate([cycle.think, cycle.weight, cycle.bias]).astype("<f4").tobytes())
        gate = {"threshold": cycle.spec.threshold, "repeats": cycle.spec.repeats, "weights": f"segments/{name}"}
        schedule[number]["cycle"] = gate


def _write_segment(d: DecoderWriter, book: WeightBook, folder: Path, k: int, layers: range, *, last: bool) -> GraphInfo:
    g = GraphWriter(f"segment_{k}", book)
    x = g.input(c.HIDDEN, "float32", "B", "R", d.spec.hidden)
    d.inputs(g)
    for cache, layer in enumerate(layers):
        x = d.layer(g, x, layer, cache)
    if last:
        x = d.norm(g, x, d.spec.names.norm)
    d.finish(g)
    g.output(x, c.HIDDEN_OUT, "float32", "B", "R", d.spec.hidden)
    return g.save(folder / f"segment_{k}.onnx", layers=len(layers))


def write_reference(d: DecoderWriter, book: WeightBook, root: Path, plan: Plan) -> GraphInfo:
    """The uncut model, from token ids to decision, on the same weight files: what a bundle is compared with.

    No operator is fused across the edges of the plan's pieces, so that the chain computes the same bits. A layer that
    runs again has its weights under other names, since ONNX Runtime would dequantise a shared matrix for all of them
    together, and not inside their products.
    """
    g = GraphWriter("reference", book, prefix="segments/")
    x = write_embed(g, d)
    d.inputs(g)
    depth = 0
    for visit in plan.visits:
        g.alias = f".loop_{visit.loop}" if visit.loop else ""
        for layer in plan.pieces[visit.piece]:
            x = d.layer(g, x, layer, depth)
            depth += 1
        g.alias = ""
        if visit is plan.visits[-1]:
            x = d.norm(g, x, d.spec.names.norm)
        d.finish(g)
    flat = g.op("Reshape", x, g.constant([-1, d.spec.hidden]))
    g.input(c.THRESHOLDS, "float32", "N", 3)
    decide(g, head_logits(g, d, flat), d.spec.vocab)
    return g.save(root / REFERENCE, layers=depth, relative=REFERENCE)
