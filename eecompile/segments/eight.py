"""Numbers of 8 bits under a scale, as engines multiply them: floats (E4M3) and integers.

Micikevicius et al., "FP8 Formats for Deep Learning" (2022), section 3: the floats and scales for them. Xiao et al.,
"SmoothQuant" (2023), section 4: integers have no range to spare for inputs of which a few are far larger than the
others, so that each input is divided by a factor and the weights that it meets are multiplied by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

Float = NDArray[np.float32]
LEAST_SCALE, MOST_SCALE = 2.0**-14, 2.0**15  # what float16 holds to its last bit
_LEAST_SIZE = 2.0**-20  # in place of zero, where nothing was seen


@dataclass(frozen=True)
class Eight:
    """A type of 8 bits. most: its largest magnitude. share: of the unevenness of inputs that the weights take over; 0:
    none, inputs are not smoothed."""

    item_type: int
    most: float
    share: float

    def scale(self, largest: Float) -> Float:
        """Scales under which numbers of these largest magnitudes fit, and which float16 holds to the last bit.

        A float loses nothing but range by a scale that is a power of two, and every type holds those.
        """
        exact = np.asarray(largest, np.float64) / self.most
        if self.item_type == TensorProto.FLOAT8E4M3FN:
            mantissa, exponent = np.frexp(exact)
            scale = np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))
        else:
            near = np.clip(exact, LEAST_SCALE, MOST_SCALE).astype(np.float16)
            scale = np.where(near < exact, np.nextafter(near, np.float16(np.inf)), near)
        return np.asarray(np.clip(scale, LEAST_SCALE, MOST_SCALE), np.float32)

    def rounded(self, numbers: Float) -> NDArray[Any]:
        """Numbers that were divided by their scale, in this type."""
        if self.item_type == TensorProto.FLOAT8E4M3FN:
            return np.asarray(numbers.astype(ml_dtypes.float8_e4m3fn))
        return np.clip(np.rint(numbers), -self.most, self.most).astype(np.int8)

    def factors(self, inputs: Float, weights: Float) -> Float:
        """What each input is divided by and the weights that it meets are multiplied by, powers of two [in]; all 1
        where nothing is smoothed. inputs, weights: the largest magnitudes of each input and of its weights [in]."""
        if not self.share:
            return np.ones(len(inputs), np.float32)
        a, b = (np.maximum(sizes.astype(np.float64), _LEAST_SIZE) for sizes in (inputs, weights))
        power = np.rint(self.share * np.log2(a) - (1 - self.share) * np.log2(b))
        return np.asarray(np.exp2(np.clip(power, -14, 14)), np.float32)


EIGHTS: Mapping[str, Eight] = {
    "fp8": Eight(TensorProto.FLOAT8E4M3FN, 448.0, 0.0),
    "w8a8": Eight(TensorProto.INT8, 127.0, 0.7),
}
