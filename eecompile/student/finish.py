"""What a family does to the product of ready rows and head before it calls them logits.

Every head of a model ends in this, the full one and the small ones: a small head stands in for the product alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eecompile.student.model import DecoderSpec
from eecompile.student.store import WeightStore

Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class LogitFinish:
    """z = scale * product + bias, and c * tanh(z / c) where there is a bound `softcap` c. bias: that of each logit."""

    scale: float = 1.0
    bias: NDArray[np.float32] | None = None
    softcap: float | None = None

    @classmethod
    def of_model(cls, spec: DecoderSpec, store: WeightStore) -> "LogitFinish":
        """That of all V logits of a model."""
        name = spec.names.head_bias
        return cls(spec.logit_scale, None if name is None else store.read(name), spec.logit_softcap)

    def of_tokens(self, tokens: Sequence[int] | NDArray[np.int64]) -> "LogitFinish":
        """That of these tokens' logits alone."""
        return self if self.bias is None else replace(self, bias=self.bias[np.asarray(tokens)])

    def __call__(self, product: NDArray[Real]) -> NDArray[Real]:
        """product [N, logits] -> logits, in its precision."""
        real = product.dtype.type
        z = product if self.scale == 1 else product * real(self.scale)
        z = z if self.bias is None else z + self.bias
        return np.asarray(z if self.softcap is None else np.tanh(z / real(self.softcap)) * real(self.softcap), real)
