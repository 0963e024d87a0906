"""The rates of the machine at hand, measured in a few seconds: the cost model's input where no data sheet has them.

One chain of products is timed over one row and over many. It is of the model's own width, precision and size: kernels
attain other rates in thin matrices and in quantised ones, and how much of a model a processor's caches hold decides how
fast it is read. The time of no rows is reading, the slope over rows is computing. A second chain has as many bytes in a
few matrices as wide as a head: what the first takes longer to read is what each of its products costs by itself.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import onnx

from eecompile import contract as c
from eecompile.bench.rates import Rates
from eecompile.bench.work import STORED
from eecompile.engines.ort import OrtEngine, OrtPass, use_threads
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import pack_int4
from eecompile.segments.weights import Values, WeightBook

MOST_BYTES: Final = 256 << 20  # of a chain; no cache holds a useful part of more
NARROWEST: Final = 256  # products of thinner matrices are all overhead
ROWS: Final = 32
ROUNDS: Final = 7
_SMALL_NODES: Final = 400
_WIDENING: Final = 3  # an MLP's width over the hidden state's, about
_HEADS: Final = 64  # a head's, at most


@dataclass(frozen=True)
class _Reading:
    """A chain over a lone row: its matrices, their bytes, and the seconds that are not arithmetic or small kernels."""

    count: int
    bytes: float
    seconds: float


def measure_rates(width: int, precision: str, weights: float, *, threads: int, launch: float) -> Rates:
    """What this machine does with products over `width` numbers, their weights in `precision`, by ONNX Runtime.

    weights: bytes of the model's. launch: seconds of a pass beyond its kernels, which are the runtime's own. Makes the
    process-wide thread pool. Memory: about three times the weights, of MOST_BYTES at most, for as long as it runs.
    """
    use_threads(threads)
    width = max(NARROWEST, -(-width // c.BLOCK) * c.BLOCK)
    most = min(weights, MOST_BYTES) / STORED[precision]
    count = max(2, round(most / (width * _WIDENING * width)) // 2 * 2)
    wide = max(_WIDENING, min(_HEADS, int(most / (2 * width * width)))) * width
    heads = max(1, round(most / (width * wide)))
    with tempfile.TemporaryDirectory(prefix="eecompile-rates-") as name:
        folder, shapes = Path(name), {1: width, ROWS: width}
        small = _timed(folder, "small", lambda g: _write_small(g, width), {1: width})
        chain = _timed(folder, "chain", lambda g: _write_chain(g, width, count, precision), shapes)
        few = _timed(folder, "few", lambda g: _write_heads(g, width, wide, heads, precision), shapes)
    kernel = small[1] / _SMALL_NODES
    thin, broad = float(count * width * _WIDENING * width), float(heads * width * wide)  # multiplications of a row
    bandwidth, product = _solve(
        _Reading(count, thin * STORED[precision], _reading(chain, count * kernel)),
        _Reading(heads, broad * STORED[precision], _reading(few, 2 * heads * kernel)),
    )
    flops = 2 * (thin + broad) / (_row(chain) + _row(few))
    return Rates(
        bandwidth=bandwidth, flops=flops, launch=launch, kernel=kernel, overlaps=False, value=4.0,
        basis=f"this machine by rates measured with {threads} threads", product=product,
    )  # fmt: skip


def _row(chain: Mapping[int, float]) -> float:
    """Seconds that a row more takes."""
    return max((chain[ROWS] - chain[1]) / (ROWS - 1), 1e-12)


def _reading(chain: Mapping[int, float], kernels: float) -> float:
    return max(chain[1] - _row(chain) - kernels, chain[1] / 2)  # whatever noise says, a lone row mostly reads


def _solve(many: _Reading, few: _Reading) -> tuple[float, float]:
    """Bytes/s and seconds a product, such that both chains take what they took: of each, a price for its products and
    one for its bytes. Where many matrices are read no slower than few, a product has no price."""
    dearer = many.seconds / many.bytes - few.seconds / few.bytes
    oftener = many.count / many.bytes - few.count / few.bytes
    if dearer <= 0 or oftener <= 0:
        return (many.bytes + few.bytes) / (many.seconds + few.seconds), 0.0
    product = dearer / oftener
    return few.bytes / max(few.seconds - few.count * product, few.seconds / 2), product


def _timed(folder: Path, name: str, write: Callable[[GraphWriter], None], rows: Mapping[int, int]) -> dict[int, float]:
    """The least seconds of a pass by its rows, since whatever else runs here only adds. rows: the width of the input
    for each number of rows."""
    book = WeightBook(folder)
    g = GraphWriter(name, book)
    write(g)
    info = g.save(folder / f"{name}.onnx")
    book.close()
    engine = OrtEngine(folder / f"{name}.onnx", info)
    passes: dict[int, tuple[OrtPass, list[float]]] = {}
    for count, width in rows.items():
        buffers = {key: np.ones((count, width), np.float32) for key in (c.HIDDEN, c.HIDDEN_OUT)}
        passes[count] = (engine.bind(buffers), [])
    for run, _ in passes.values():
        run()
    for _ in range(ROUNDS):
        for run, times in passes.values():
            began = perf_counter()
            run()
            times.append(perf_counter() - began)
    return {count: min(times) for count, (_, times) in passes.items()}


def _write_small(g: GraphWriter, width: int) -> None:
    """A chain of nodes with little to do, no two of which ONNX Runtime would make one of."""
    x = g.input(c.HIDDEN, "float32", "N", width)
    for node in range(_SMALL_NODES):
        x = g.op("Sigmoid" if node % 2 else "Tanh", x)
    g.output(x, c.HIDDEN_OUT, "float32", "N", width)


def _write_chain(g: GraphWriter, width: int, count: int, precision: str) -> None:
    x = g.input(c.HIDDEN, "float32", "N", width)
    for number in range(count):
        shape = (width, _WIDENING * width) if number % 2 == 0 else (_WIDENING * width, width)
        x = g.op("MatMul", x, _matrix(g, number, shape, precision))
    g.output(x, c.HIDDEN_OUT, "float32", "N", width)


def _write_heads(g: GraphWriter, width: int, wide: int, count: int, precision: str) -> None:
    """Products as wide as a head, each over the first numbers of the one before."""
    x = g.input(c.HIDDEN, "float32", "N", width)
    for number in range(count):
        x = g.op("MatMul", x, _matrix(g, number, (width, wide), precision))
        x = g.op("Slice", x, g.constant([0]), g.constant([width]), g.constant([1]))
    g.output(x, c.HIDDEN_OUT, "float32", "N", width)


def _matrix(g: GraphWriter, number: int, shape: tuple[int, int], precision: str) -> str:
    """Weights whose product neither grows nor vanishes: a tile of random signs, over and over, from another one on in
    each matrix. ONNX Runtime keeps equal weights once, and then reads them from the processor's caches."""
    name, signs = f"w{number}", np.resize(np.roll(_SIGNS, -number), shape)
    scale = 1 / np.sqrt(shape[0])
    if precision in c.QUANTISED:
        scales = np.full((shape[0] // c.BLOCK, shape[1]), scale, np.float32)
        values = Values.of(signs) if precision == "int8" else Values(pack_int4(signs), onnx.TensorProto.INT4, shape)
        return g.op(
            "DequantizeLinear", g.weight(name, lambda: values), g.array(f"{name}.scale", lambda: scales), axis=0,
            block_size=c.BLOCK,
        )  # fmt: skip
    dense = (signs * np.float32(scale)).astype(np.float16 if precision == "fp16" else np.float32)
    weight = g.array(name, lambda: dense)
    return g.op("Cast", weight, to=1) if precision == "fp16" else weight


_SIGNS: Final = np.where(np.random.default_rng(0).random(65521) < 0.5, -1, 1).astype(np.int8)  # a prime: rows differ
