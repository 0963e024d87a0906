"""What a device does in a second, and what a pass of some work takes on it: a roofline with a price for each kernel.

Williams et al., "Roofline" (2009): a pass takes the longer of moving its bytes and of computing its operations. That
holds where the two overlap, as on a GPU. On a processor the core that waits for a weight is the one that would multiply
by it, and measured passes are nearer to the sum (ARCHITECTURE.md), so there they add up.
"""

from dataclasses import dataclass

from eecompile.bench.work import Work
from eecompile.errors import UsageError
from eecompile.target import Target


@dataclass(frozen=True)
class Rates:
    """bandwidth: bytes/s. flops: operations/s (0: unknown, and not counted). launch: seconds of a pass beyond its
    kernels; kernel: the least seconds of one; product: those of one with a matrix, beyond its bytes and operations.
    overlaps: bytes move while it computes. value: bytes of an activation. basis: where the rates are from."""

    bandwidth: float
    flops: float
    launch: float
    kernel: float
    overlaps: bool
    value: float
    basis: str
    product: float = 0.0

    def seconds(self, work: Work, rows: int, length: int, slots: int = 1) -> float:
        """Seconds of one pass over so many slots, of `rows` rows each with `length` tokens in the cache."""
        moving = work.bytes(rows, length, self.value, slots) / self.bandwidth
        computing = work.operations(rows, length, slots) / self.flops if self.flops else 0.0
        busy = max(moving, computing) if self.overlaps else moving + computing
        return self.launch + work.kernels * self.kernel + work.matrices * self.product + busy


def rates_from_target(target: Target, compute: str) -> Rates:
    """The rates of the target's data sheet, as far as kernels attain them, for products in the type `compute`: that of
    its engines (float32, or one of 16 bits, to which smaller weights are widened), and on a processor float32.

    Raises UsageError where the target's file does not say how fast its memory is.
    """
    if not target.bandwidth:
        mend = "name a device (`eecompile targets` lists them), or give a .toml file with its bandwidth and flops"
        raise UsageError(f"target {target.name} does not say how fast its memory is", mend=mend)
    narrow = compute != "float32"
    return Rates(
        bandwidth=target.bandwidth * target.attained,
        flops=target.flops.get("fp16" if narrow else "fp32", 0.0) * target.attained,
        launch=target.launch,
        kernel=target.kernel,
        overlaps=target.backend != "onnxruntime",
        value=2.0 if narrow else 4.0,
        basis=f"{target.name} by its data sheet, {target.attained:.0%} of its rates attained",
    )
