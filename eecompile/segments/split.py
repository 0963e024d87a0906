"""Cut a student at its exits into segment, exit, embed and head graphs, and the uncut graph to hold them against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.schema import GraphInfo
from eecompile.segments.decoder import DecoderWriter
from eecompile.segments.encoder_decoder import CrossDecoderWriter, write_encoder
from eecompile.segments.exits import write_exit
from eecompile.segments.graph import GraphFolder, GraphWriter
from eecompile.segments.heads import write_small_head
from eecompile.segments.low_rank import LowRank, factor_bytes
from eecompile.segments.outer import decide, head_logits, write_embed, write_head
from eecompile.segments.plan import Plan, plan_segments
from eecompile.segments.propagate import write_kv_graph
from eecompile.segments.weights import WeightBook
from eecompile.student.cycles import Cycle
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.loops import Part
from eecompile.student.store import WeightStore
from eecompile.student.student import Student

REFERENCE = "reference.onnx"
Factors = dict[str, tuple[str, Part]]  # by the name of an input: the projection and the part that it takes


@dataclass(frozen=True)
class GraphSet:
    """The graphs of a model. `kv[i]` is segment i's K/V-only graph: none for the first, which no token skips, and none
    at all unless asked for."""

    embed: GraphInfo
    segments: list[GraphInfo]
    exits: list[GraphInfo]
    head: GraphInfo
    heads: list[GraphInfo]
    encoder: GraphInfo | None = None
    kv: list[GraphInfo | None] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {
            "embed": self.embed.model_dump(), "segments": [g.model_dump() for g in self.segments],
            "exits": [g.model_dump() for g in self.exits], "head": self.head.model_dump(),
            "heads": [g.model_dump() for g in self.heads],
            "kv": [None if g is None else g.model_dump() for g in self.kv],
            "encoder": None if self.encoder is None else self.encoder.model_dump(),
        }  # fmt: skip


@dataclass(frozen=True)
class WrittenGraphs:
    """What `write_segments` wrote. `schedule` are the manifest's steps, `book` knows where the weights lie."""

    graphs: GraphSet
    reference: GraphInfo | None
    schedule: list[dict[str, Any]]
    book: WeightBook

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the weight files, by their paths in the bundle."""
        return {f"segments/{file}": sha for file, sha in self.book.hashes.items()}

    def described(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {**self.graphs.described(), "reference": self.reference and self.reference.model_dump()}


@dataclass(frozen=True)
class Cut:
    """A student and how its graphs are to be.

    precision, cache: what weights, and keys and values, are kept in. fused: with ONNX Runtime's fused operators, for
    bundles of one slot that only it will run. propagate: also the K/V-only graphs of the segments that a token can
    skip. selected: caches may be compact. largest: inputs of products of 8-bit numbers (DecoderWriter).
    """

    student: Student
    precision: str
    context: int
    slack: int = c.SLACK
    fused: bool = False
    propagate: bool = False
    selected: bool = False
    cache: str = "fp32"
    largest: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The pieces, and when each runs."""
        exits_at = [e.depth for e in self.student.exits.schema.exits]
        cycles = [cycle.spec for cycle in self.student.cycles]
        return plan_segments(self.student.own_spec.layers, exits_at, self.student.loops, cycles)

    def writer(self) -> DecoderWriter:
        """What writes its layers."""
        spec, store, loops = self.student.own_spec, self.student.own_store, self.student.loops
        sizes = (self.precision, self.context, self.slack, self.fused)
        if isinstance(spec, EncoderDecoderSpec):
            return CrossDecoderWriter(spec, store, *sizes, cache=self.cache)
        low_rank = LowRank(spec, loops) if loops is not None and loops.rank else None
        return DecoderWriter(
            spec, store, *sizes, low_rank, cache=self.cache, compact=self.selected, largest=self.largest
        )


def write_segments(cut: Cut, root: Path, *, progress: Callable[[str], None] = lambda stage: None) -> WrittenGraphs:
    """Write every graph and its weights under root/segments; call `progress` before each with its name.

    Memory: one weight matrix in its final precision and 16 MiB of its source at a time.
    """
    folder = root / "segments"
    folder.mkdir(parents=True, exist_ok=True)
    student, book = cut.student, WeightBook(folder)
    plan, d = cut.plan, cut.writer()
    graphs, factors = write_graphs(cut, d, GraphFolder(folder, book), progress)
    schedule = _schedule(plan, factors, student.exits.store, folder)
    _write_cycles(folder, plan, student.cycles, schedule)
    reference = None if student.cycles else write_reference(d, book, root, plan)
    book.close()
    return WrittenGraphs(graphs, reference, schedule, book)


def write_graphs(
    cut: Cut, d: DecoderWriter, out: GraphFolder, progress: Callable[[str], None]
) -> tuple[GraphSet, list[Factors]]:
    """Write the graphs of a cut student; also returns the LoRA inputs of each piece."""
    student, exits = cut.student, cut.student.exits
    progress("embed")
    embed = out.write("embed", partial(_write_embed, d=d))
    encoder = None
    if isinstance(d, CrossDecoderWriter):
        progress("encoder")
        encoder = out.write("encoder", partial(write_encoder, d=d), layers=d.spec.encoder.layers)
    segments, factors = _write_chain(d, out, cut.plan, progress)
    kv: list[GraphInfo | None] = [None] if cut.propagate else []
    for k, layers in enumerate(cut.plan.pieces[1:] if cut.propagate else [], start=1):
        kv.append(out.write(f"kv_{k}", partial(write_kv_graph, d=d, layers=layers), len(layers)))
    asked = []
    for k, exit_ in enumerate(exits.schema.exits):
        progress(f"exit {k}")
        write = partial(write_exit, d=d, exits=exits, exit_=exit_)
        asked.append(out.write(f"exit_{k}", write, layers=int(exit_.adapter == "layer")))
    progress("head")
    head = out.write("head", partial(write_head, d=d))
    heads = []
    for small in student.exits.schema.heads:
        progress(f"head {small.name}")
        heads.append(out.write(f"head_{small.name}", partial(write_small_head, d=d, exits=exits, head=small)))
    return GraphSet(embed, segments, asked, head, heads, encoder, kv), factors


def _write_embed(g: GraphWriter, d: DecoderWriter) -> None:
    g.output(write_embed(g, d), c.HIDDEN_OUT, "float32", "B", "R", d.spec.hidden)


def _write_chain(
    d: DecoderWriter, out: GraphFolder, plan: Plan, progress: Callable[[str], None]
) -> tuple[list[GraphInfo], list[Factors]]:
    """Write each piece once; returns the graphs and their LoRA inputs."""
    segments, factors = [], []
    for k, layers in enumerate(plan.pieces):
        progress(f"segment {k}")
        write = partial(_write_segment, d=d, layers=layers, last=k == plan.visits[-1].piece)
        segments.append(out.write(f"segment_{k}", write, layers=len(layers)))
        factors.append({} if d.low_rank is None else dict(d.low_rank.inputs))
    return segments, factors


def _schedule(plan: Plan, factors: list[Factors], store: WeightStore | None, folder: Path) -> list[dict[str, Any]]:
    """The schedule's steps; writes the LoRA that each binds to its segment."""
    steps: list[dict[str, Any]] = []
    for number, visit in enumerate(plan.visits):
        steps.append({"segment": visit.piece, "cache": number, "exit": visit.exit})
        if factors[visit.piece]:
            assert visit.loop is not None  # only a block that repeats has any
            assert store is not None
            name = f"factors_{number}.weights"
            (folder / name).write_bytes(factor_bytes(factors[visit.piece], visit.loop, store))
            steps[-1]["factors"] = f"segments/{name}"
    return steps


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


def _write_segment(g: GraphWriter, d: DecoderWriter, layers: range, *, last: bool) -> None:
    x = g.input(c.HIDDEN, "float32", "B", "R", d.spec.hidden)
    d.inputs(g)
    for cache, layer in enumerate(layers):
        x = d.layer(g, x, layer, cache)
    if last:
        x = d.norm(g, x, d.spec.names.norm)
    d.finish(g)
    g.output(x, c.HIDDEN_OUT, "float32", "B", "R", d.spec.hidden)


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
