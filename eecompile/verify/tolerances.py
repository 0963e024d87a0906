"""How far engines may be from a reference, per precision, and why.

Measured on SmolLM2-135M-Instruct with exits after 6, 12, 18 and 24 of 30 layers, over text and arbitrary ids, ONNX
Runtime 1.31 on x86-64; in brackets the worst that was seen. The bounds leave a factor of 2 to 10 for other models.
`largest` and `mean` are those of compare.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.verify.compare import Statistic

CLEAR_MARGIN = 0.3  # a row is clear where the reference prefers its first token by this much probability
LEAST_CLEAR = 10  # rows; of fewer, the share that agrees says nothing


@dataclass(frozen=True)
class Tolerance:
    """Bounds of the errors at each boundary, and the least share of clear rows whose arg-max agrees."""

    bounds: Mapping[Statistic, float]
    clear_top1: float


@dataclass(frozen=True)
class Band:
    """How far from a threshold a reference's value may be where the engine decides otherwise: in probability (max_prob,
    margin, learned) and in nats (entropy)."""

    probability: float
    nats: float

    def of(self, criterion: str) -> float:
        """The band of one criterion."""
        return self.nats if criterion == "entropy" else self.probability


# A device's engines multiply in these: the precision whose tolerances they keep. bfloat16 has 8 bits.
_COMPUTED: Mapping[str, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "int8"}


def coarsest(manifest: Manifest, backend: str = "onnxruntime") -> str:
    """The coarsest of the weights' precision, the caches' type, and what the back end computes in: what tolerances go
    by."""
    return max(manifest.precision, manifest.cache, computed(manifest, backend), key=c.PRECISIONS.index)


def computed(manifest: Manifest, backend: str) -> str:
    """The precision whose tolerances the back end's arithmetic keeps."""
    return _COMPUTED[manifest.device.compute] if manifest.device is not None and backend == "tensorrt" else "fp32"


# Against a float32 model on the checkpoint's weights.
# fp32: only the order of summation differs [largest 3.3e-5, mean 1.2e-6].
# fp16: weights are rounded to 11 bits and computed with in float32 [1.3e-2, 6.4e-4].
# int8: weights in blocks of 32 and, in ONNX Runtime's kernel, activations in 8 bits; single rows with outlying
#       activations are far off, so only the mean is judged [3.0e-2; every clear row agreed].
# int4: 4-bit weights, the bulk of the error [0.36, on text alone 0.49; 65% of clear rows agreed]. Unrelated rows
#       would be at 1.1.
# fp8, w8a8: weights and rows of 8 bits in every product of the layers [fp8 0.09, every clear row agreed; w8a8, by the
#       model in numpy, 0.17 and 97%].
PARITY: Mapping[str, Tolerance] = {
    "fp32": Tolerance({"largest": 1e-4, "mean": 1e-5}, 0.99),
    "fp16": Tolerance({"largest": 5e-2, "mean": 1e-2}, 0.99),
    "int8": Tolerance({"mean": 0.2}, 0.9),
    "w8a8": Tolerance({"mean": 0.5}, 0.7),
    "fp8": Tolerance({"mean": 0.3}, 0.9),
    "int4": Tolerance({"mean": 0.8}, 0.4),
}

# Against a float32 model on the bundle's own weights, dequantised: what is left is the kernels' arithmetic.
# fp16: as fp32 [1.2e-5, 1.3e-6]. int8 and int4: the 8-bit activations [mean 2.7e-2 and 3.5e-2; 100% and 96% agreed].
ARITHMETIC: Mapping[str, Tolerance] = {
    "fp16": Tolerance({"largest": 1e-4, "mean": 1e-5}, 0.99),
    "int8": Tolerance({"mean": 0.1}, 0.9),
    "w8a8": Tolerance({"mean": 0.4}, 0.7),
    "fp8": Tolerance({"mean": 0.3}, 0.9),
    "int4": Tolerance({"mean": 0.1}, 0.85),
}

# A device's graphs against the bundle's own, weights and caches being the same: what is left is float16's arithmetic
# [fp16 3.7e-3, 9.0e-4 and scores 9.3e-3; int4 1.9e-2, 2.6e-3 and 5.3e-2]. 8-bit products: a row at the edge of a step
# falls to either side, and after some layers the two are as far apart as each is from float32 [fp8 0.11 and 0.97 nats].
DEVICE: Mapping[str, Mapping[Statistic, float]] = {
    "float32": {"largest": 1e-4, "mean": 1e-5},
    "float16": {"largest": 5e-2, "mean": 1e-2},
    "w8a8": {"mean": 0.4},  # not measured on a real model
    "fp8": {"mean": 0.25},
}
# in probability, nats or cosine
DEVICE_SCORES: Mapping[str, float] = {"float32": 2e-4, "float16": 0.15, "w8a8": 2.0, "fp8": 2.0}

# A decision that differs. fp32: [1.4e-5, 2.0e-5]; fp16: [8.5e-3, 8.5e-3]; int8 and int4 against the own weights
# [0.06 at the quartiles; against the checkpoint int8 moves single rows by 0.32 and 0.38 nats, int4 by 0.9 and 3.8].
BANDS: Mapping[str, Band] = {
    "fp32": Band(1e-4, 2e-4),
    "fp16": Band(3e-2, 5e-2),
    "int8": Band(0.35, 0.7),
    "w8a8": Band(0.35, 0.7),
    "fp8": Band(0.35, 0.7),
    "int4": Band(0.35, 0.7),
}

# The same row in passes of different widths: the graphs are built so that it is the same to the last bit [0]. Exact
# mode rests on it, so that no more than reordered sums is let through, in any precision.
PASSES: Mapping[Statistic, float] = {"largest": 1e-5}

# Exit graphs compute in float32 in every precision, here against float64 [8e-7, 1e-7].
EXITS: Mapping[Statistic, float] = {"largest": 1e-5, "mean": 1e-6}
CONFIDENCE = 1e-5

# The module of an exit that has one, in the build's precision, against the float32 model on its stored weights.
MODULE_BOUNDS: Mapping[str, Mapping[Statistic, float]] = {
    "fp32": PARITY["fp32"].bounds, **{precision: tolerance.bounds for precision, tolerance in ARITHMETIC.items()},
}  # fmt: skip

# The decision node against float64 on the same logits: a sum of V float32 terms loses that much [2.1e-5, 2.0e-5].
NODE = Band(1e-4, 1e-3)
