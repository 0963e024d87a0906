"""The weights of gates between float32 arrays and the base64 of a policy."""

import base64
import binascii
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.manifest import ExitInfo, ExitPolicy, GateWeights
from eecompile.shapes import weight_shapes

FloatArray = NDArray[np.float32]
GateArrays = Mapping[str, FloatArray]  # by part: w1, b1, w2, b2, or w2, b2 (shapes.weight_shapes)
KINDS = ("gate", "router", "predictor")
_PARTS = ("w1", "b1", "w2", "b2")


def decode_gate(gate: GateWeights, inputs: int, outputs: int = 1) -> GateArrays:
    """The weights as arrays, of a gate that reads `inputs` numbers and gives `outputs`.

    Raises ValueError on bad base64, a wrong size, NaN or infinity.
    """
    shapes = weight_shapes(inputs, gate.units, outputs)
    if extra := [part for part in _PARTS if part not in shapes and getattr(gate, part)]:
        raise ValueError(f"{extra[0]} of a gate that has no units")
    return {name: _decode(name, getattr(gate, name), shape) for name, shape in shapes.items()}


def encode_gate(w1: FloatArray | None, b1: FloatArray | None, w2: FloatArray, b2: FloatArray) -> GateWeights:
    """`GateWeights` of arrays, w1 and b1 None where there are no units; they are converted to float32."""
    arrays = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    texts = {part: "" if a is None else _encode(a) for part, a in arrays.items()}
    return GateWeights(units=0 if w1 is None else w1.shape[1], **texts)


def gates_fault(chosen: ExitPolicy, info: ExitInfo, hidden: int) -> str | None:
    """Why the weights in a policy are none for this exit, or None; `hidden` is D."""
    sizes = info.gate_sizes(hidden)
    for kind in KINDS:
        weights: GateWeights | None = getattr(chosen, kind)
        if kind not in sizes:
            if weights is not None:
                return f"{kind} weights of an exit that has no such gate"
            continue
        inputs, units, outputs = sizes[kind]
        if weights is None:
            return f"no {kind} weights where the bundle has that gate"
        if weights.units != units:
            return f"a {kind} of {weights.units} units where the bundle's has {units}"
        try:
            decode_gate(weights, inputs, outputs)
        except ValueError as e:
            return f"{kind} weights: {e}"
    return None


def gate_inputs(chosen: ExitPolicy, info: ExitInfo, hidden: int) -> dict[str, FloatArray]:
    """Every gate's weights by the name of the exit graph's input: "<kind>_<part>"."""
    arrays: dict[str, FloatArray] = {}
    for kind, (inputs, _, outputs) in info.gate_sizes(hidden).items():
        decoded = decode_gate(getattr(chosen, kind), inputs, outputs)
        arrays |= {f"{kind}_{part}": array for part, array in decoded.items()}
    return arrays


def _encode(array: FloatArray) -> str:
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


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
