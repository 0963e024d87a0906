"""A learned gate's weights between float32 arrays and the base64 of a policy."""

import base64
import binascii
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.manifest import GateWeights

FloatArray = NDArray[np.float32]


class GateArrays(NamedTuple):
    """sigmoid(tanh(n w1 + b1) w2 + b2): float32, w1 [D, U], b1 [U], w2 [U, 1], b2 [1]."""

    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray


def decode_gate(gate: GateWeights, hidden: int) -> GateArrays:
    """The weights as arrays; `hidden` is D. Raises ValueError on bad base64, a wrong size, NaN or infinity."""
    units = gate.units
    shapes = {"w1": (hidden, units), "b1": (units,), "w2": (units, 1), "b2": (1,)}
    return GateArrays(*(_decode(name, getattr(gate, name), shape) for name, shape in shapes.items()))


def encode_gate(w1: FloatArray, b1: FloatArray, w2: FloatArray, b2: FloatArray) -> GateWeights:
    """`GateWeights` of arrays shaped as in GateArrays; they are converted to float32."""
    texts = (base64.b64encode(np.asarray(a, "<f4").tobytes()).decode() for a in (w1, b1, w2, b2))
    return GateWeights(units=w1.shape[1], **dict(zip(("w1", "b1", "w2", "b2"), texts, strict=True)))


def _decode(name: str, text: str, shape: tuple[int, ...]) -> FloatArray:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ValueError(f"{name} is not base64") from e
    if len(data) != 4 * int(np.prod(shape)):
        raise ValueError(f"{name} has {len(data)} bytes instead of {4 * int(np.prod(shape))} for {list(shape)}")
    array = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite everywhere")
    return array
