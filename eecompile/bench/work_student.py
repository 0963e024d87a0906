"""The work of every graph that a build of a student would have, from the shapes of its weights alone."""

import math
from collections.abc import Mapping
from dataclasses import replace

from eecompile import contract as c
from eecompile.bench.work import STORED, Matrix, Work
from eecompile.runtime.heads import head_graph
from eecompile.segments.eight import EIGHTS
from eecompile.segments.plan import Plan, plan_segments
from eecompile.shapes import HeadShape, weight_shapes
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.exits import ExitSpec
from eecompile.student.model import DecoderSpec, Shapes
from eecompile.student.modules import MODULES, mlp_norm, module_spec
from eecompile.student.student import Student

CACHED: Mapping[str, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


def plan_of(student: Student) -> Plan:
    """Where a build cuts the student, and what runs when."""
    exits, cycles = student.exits.schema.exits, student.cycles
    return plan_segments(
        student.own_spec.layers, [e.depth for e in exits], student.loops, [cycle.spec for cycle in cycles]
    )


def works_from_student(student: Student, precision: str, cache: str, *, kv: bool = False) -> dict[str, Work]:
    """The work of each graph, named as in a profile. cache: what keys and values are kept in. kv: also of the K/V-only
    graphs of the rule `propagate`."""
    spec, pieces = student.own_spec, plan_of(student).pieces
    works = {"embed": _embed(spec, precision), "head": _head(spec, precision)}
    for k, piece in enumerate(pieces):
        works[f"segment_{k}"] = _segment(student, piece, precision, cache)
        if kv and k:
            works[f"kv_{k}"] = _keys_only(spec, piece, precision)
    for i, exit_ in enumerate(student.exits.schema.exits):
        works[f"exit_{i}"] = _exit(student, exit_, precision, cache)
    for head in student.exits.schema.heads:
        works[head_graph(head.name)] = Work.of(_small(head, spec, precision), vectors=4.0 * head.bias * spec.vocab)
    return works


def stored_weights(student: Student, precision: str, works: Mapping[str, Work], *, shared: bool = True) -> float:
    """Bytes of all weights, each counted once but for the final norm that every exit has: a tied dense head is the
    table of the embeddings, a predictor's head is that of exits, and each loop has factors of its own.

    shared: False for engines, each of which holds its own weights, a tied head too.
    """
    spec, table = student.own_spec, _table(precision)
    tied = shared and spec.tied and precision not in c.QUANTISED
    weights = sum(work.weights for name, work in works.items() if not (tied and name == "head"))
    weights += table * spec.vocab * spec.hidden + _other_loops(student)
    for exit_ in student.exits.schema.exits:
        if exit_.predictor is not None:
            weights -= sum(m.bytes for m in _small(student.exits.head(exit_.predictor.head), spec, precision))
    if spec.names.positions:
        weights += table * spec.max_positions * spec.hidden
    if isinstance(spec, EncoderDecoderSpec):
        layers = [spec.encoder.layer_shapes(i) for i in range(spec.encoder.layers)]
        weights += sum(_stored(shape, precision) for shapes in layers for shape in shapes.values())
        weights += 2 * spec.layers * _stored((spec.heads * spec.head_dim, spec.hidden), precision)  # of the source
    return weights


def _outside(precision: str) -> str:
    """The precision of matrices outside of the layers: 8-bit products are the layers' own."""
    return "fp16" if precision in c.SCALED else precision


def _table(precision: str) -> float:
    """Bytes of a number of a table that rows are looked up in."""
    return STORED["fp32" if precision == "fp32" else "fp16"]


def _other_loops(student: Student) -> float:
    """Bytes of the low-rank factors of all loops but one, which the segments' works have."""
    loops = student.loops
    if loops is None:
        return 0.0
    every = sum(math.prod(shape) for shape in loops.factor_shapes(student.own_spec).values())
    return 4.0 * every * (loops.loops - 1) / loops.loops


def _stored(shape: tuple[int, ...], precision: str) -> float:
    return math.prod(shape) * STORED[precision if len(shape) == 2 else "fp32"]


def _matrices(shapes: Shapes, precision: str) -> list[Matrix]:
    """Of weights [out, in]."""
    return [Matrix.of(shape[1], shape[0], precision) for shape in shapes.values() if len(shape) == 2]


def _vectors(shapes: Shapes) -> float:
    return 4.0 * sum(shape[0] for shape in shapes.values() if len(shape) == 1)


def _attention(spec: DecoderSpec, layers: int, cache: str) -> dict[str, float]:
    """What `layers` layers read and multiply for each token in the cache; a source counts as one as long."""
    size = CACHED[cache] * spec.head_dim + (4.0 if cache == "int8" else 0.0)
    return {
        "cached": layers * 2 * spec.kv_heads * size,
        "attended": layers * 2.0 * spec.heads * spec.head_dim * (1 + isinstance(spec, EncoderDecoderSpec)),
    }


def _layers(spec: DecoderSpec, layers: range, precision: str, cache: str) -> Work:
    every = [_layer_shapes(spec, i) for i in layers]
    matrices = [m for shapes in every for m in _matrices(shapes, precision)]
    vectors = sum(_vectors(shapes) for shapes in every) + len(layers) * _smoothing(_inputs(spec), precision)
    found = Work.of(matrices, vectors=vectors, layers=len(layers), **_attention(spec, len(layers), cache))
    if isinstance(spec, EncoderDecoderSpec):  # keys and values of the source are kept in float32
        return replace(found, cached=found.cached + len(layers) * 8.0 * spec.kv_heads * spec.head_dim)
    return found


def _inputs(spec: DecoderSpec) -> int:
    """Of a layer's four products."""
    return 2 * spec.hidden + spec.heads * spec.head_dim + spec.intermediate


def _smoothing(inputs: int, precision: str) -> float:
    """Bytes of what the inputs of products are smoothed by."""
    return 4.0 * inputs * (precision in c.SCALED and EIGHTS[precision].share > 0)


def _layer_shapes(spec: DecoderSpec, layer: int) -> Shapes:
    """The weights that a decoder layer's pass reads: keys and values of a source come from the encoder's graph."""
    shapes = spec.layer_shapes(layer)
    if not isinstance(spec, EncoderDecoderSpec):
        return shapes
    source = [f"{name.format(i=layer)}.weight" for name in (spec.cross.k, spec.cross.v)]
    return {name: shape for name, shape in shapes.items() if name not in source}


def _segment(student: Student, piece: range, precision: str, cache: str) -> Work:
    spec, loops = student.own_spec, student.loops
    pairs = [] if loops is None else [
        Matrix.of(inputs, outputs, "fp32")
        for layer in piece
        for name in loops.adapted(spec, layer)
        for outputs, inputs in _low_rank(spec.layer_shapes(layer)[f"{name}.weight"], loops.rank)
    ]  # fmt: skip
    norm = 4.0 * spec.hidden * (1 + spec.norm_bias) if piece.stop == spec.layers else 0.0
    first = spec.names.positions is not None and piece.start == 0
    looked_up = spec.hidden * _table(precision) if first else 0.0
    return _plus(_layers(spec, piece, precision, cache), Work.of(pairs, vectors=norm, looked_up=looked_up))


def _low_rank(shape: tuple[int, ...], rank: int) -> list[tuple[int, int]]:
    return [(rank, shape[1]), (shape[0], rank)]


def _keys_only(spec: DecoderSpec, piece: range, precision: str) -> Work:
    wide = spec.kv_heads * spec.head_dim
    norms = (4.0 * spec.hidden * (1 + spec.norm_bias) + _smoothing(spec.hidden, precision)) * len(piece)
    return Work.of([Matrix.of(spec.hidden, wide, precision) for _ in piece for _ in ("key", "value")], vectors=norms)


def _embed(spec: DecoderSpec, precision: str) -> Work:
    return Work.of([], looked_up=spec.hidden * _table(precision))


def _head(spec: DecoderSpec, precision: str) -> Work:
    return Work.of(
        [Matrix.of(spec.hidden, spec.vocab, _outside(precision))], vectors=4.0 * bool(spec.names.head_bias) * spec.vocab
    )


def _small(head: HeadShape, spec: DecoderSpec, precision: str) -> list[Matrix]:
    precision = _outside(precision)
    if head.kind == "shortlist":
        return [Matrix.of(spec.hidden, len(head.tokens), precision)]
    return [Matrix.of(spec.hidden, head.rank, precision), Matrix.of(head.rank, spec.vocab, precision)]


def _exit(student: Student, exit_: ExitSpec, precision: str, cache: str) -> Work:
    """Norm or module, adapter and cheap gates; what an exit has of its own is float32, but for a module's matrices."""
    spec, hidden = student.spec, student.spec.hidden
    shapes = [shape for sizes in exit_.gate_sizes(hidden).values() for shape in weight_shapes(*sizes).values()]
    own = [Matrix.of(shape[0], shape[1], "fp32") for shape in shapes if len(shape) == 2]
    vectors = 4.0 * (hidden * (1 + spec.norm_bias) + sum(shape[0] for shape in shapes if len(shape) == 1))
    if exit_.adapter == "affine":
        own.append(Matrix.of(hidden, hidden, "fp32"))
        vectors += 4.0 * hidden
    if exit_.predictor is not None:
        own += _small(student.exits.head(exit_.predictor.head), spec, precision)
    if exit_.adapter not in MODULES:
        return Work.of(own, vectors=vectors)
    module, precision = module_spec(spec, exit_.layer), _outside(precision)
    if exit_.adapter == "layer":
        layer = _layers(module, range(spec.layers - 1, spec.layers), precision, cache)
        return _plus(layer, Work.of(own, vectors=vectors))
    block = _block(module)
    return Work.of([*own, *_matrices(block, precision)], vectors=vectors + _vectors(block))


def _block(module: DecoderSpec) -> Shapes:
    """The weights of the module's MLP, with its norms."""
    n = module.names
    kept = [n.gate, n.up, n.down, *(name for name in (mlp_norm(module), n.mlp_post_norm) if name is not None)]
    stems = tuple(name.removesuffix(".weight") + "." for name in kept)
    return {name: shape for name, shape in module.layer_shapes(module.layers - 1).items() if name.startswith(stems)}


def _plus(layers: Work, beside: Work) -> Work:
    """The work of layers and of what else is in their graph, which the layers' kernels stand for."""
    return replace(
        layers, weights=layers.weights + beside.weights, products=layers.products + beside.products,
        values=layers.values + beside.values, looked_up=layers.looked_up + beside.looked_up,
    )  # fmt: skip
