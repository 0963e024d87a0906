"""What one pass of a graph reads and multiplies, whatever it runs on: the input of the cost model (rates.py).

A graph is its matrices. A pass reads each of them once, however many rows it has, and multiplies every row by each;
what stands between the products is small and counts by the number of operators that a compiler leaves of it. Of a layer
with attention a pass also reads the keys and values of every token in the cache, and every row meets every one of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from eecompile import contract as c

STORED: Final[Mapping[str, float]] = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / c.BLOCK, "int4": 0.5 + 4 / c.BLOCK}
LAYER_KERNELS: Final = 10  # two norms, four products, rotation, cache update, attention and activation
LAYER_MATRICES: Final = 4  # of those
SMALL_KERNELS: Final = 3  # of any other graph: a norm or a decision beside its products


@dataclass(frozen=True)
class Matrix:
    """A matrix that rows are multiplied by: its inputs, its outputs and the bytes that it is stored in."""

    inputs: int
    outputs: int
    bytes: float

    @classmethod
    def of(cls, inputs: int, outputs: int, precision: str) -> "Matrix":
        """One whose weights are stored in `precision`, scales included."""
        return cls(inputs, outputs, inputs * outputs * STORED[precision])


@dataclass(frozen=True)
class Work:
    """Of one pass. weights: bytes that it reads whatever its rows. products: multiplications of a row by weights.
    values: numbers that a row's products give, written and read once each. looked_up: bytes that a row takes from a
    table. cached: bytes of keys and values of one token. attended: multiplications of a row for one token in the cache.
    kernels: operators that are left once a compiler has fused what it can. layers: with attention.
    """

    weights: float = 0.0
    products: float = 0.0
    values: float = 0.0
    looked_up: float = 0.0
    cached: float = 0.0
    attended: float = 0.0
    kernels: int = 0
    layers: int = 0

    @classmethod
    def of(
        cls, matrices: Iterable[Matrix], *, vectors: float = 0.0, looked_up: float = 0.0, cached: float = 0.0,
        attended: float = 0.0, layers: int = 0,
    ) -> "Work":  # fmt: skip
        """The work of a graph with these matrices. vectors: bytes of its other weights."""
        every = list(matrices)
        return cls(
            weights=sum(m.bytes for m in every) + vectors,
            products=float(sum(m.inputs * m.outputs for m in every)),
            values=float(sum(m.outputs for m in every)),
            looked_up=looked_up,
            cached=cached,
            attended=attended,
            kernels=LAYER_KERNELS * layers or SMALL_KERNELS,
            layers=layers,
        )

    @property
    def matrices(self) -> int:
        """Products that are left once those of the same rows are one: of a graph without layers, its largest."""
        return LAYER_MATRICES * self.layers or int(self.products > 0)

    def bytes(self, rows: int, length: int, value: float = 4.0, slots: int = 1) -> float:
        """Bytes that a pass over so many slots of `rows` rows moves with `length` tokens in each one's cache; an
        activation has `value` bytes. Weights are read once."""
        each = rows * (self.looked_up + 2 * value * self.values) + self.cached * length
        return self.weights + slots * each

    def operations(self, rows: int, length: int, slots: int = 1) -> float:
        """Multiplications and additions, one each, of such a pass."""
        return 2 * slots * rows * (self.products + self.attended * length)
