"""Weights in the precision that ships: float32, float16, blockwise int8 and int4 with one scale per block, or of 8 bits
with one scale per output.

A projection is stored as [in, out], the orientation of MatMul, with its quantisation blocks along `in`. Scales are
symmetric (no zero point: TensorRT takes no other). No scale is made of the rows of a pass, which would make a row
depend on its neighbours: those of 8-bit products (scaled.py) are constants.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.segments.eight import Eight
from eecompile.segments.weights import Values
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
_LEVELS = {"int8": 127, "int4": 7}
_SHRINK = np.linspace(0.8, 1.0, 6, dtype=np.float32)  # scales tried per int4 block, as shares of the largest weight


def dense(store: WeightStore, names: Sequence[str], precision: str) -> Values:
    """Projections `names` side by side as one float32 or float16 matrix [in, out]."""
    dtype = np.float32 if precision == "fp32" else np.float16
    inputs, widths = _widths(store, names)
    out = np.empty((inputs, sum(widths)), dtype)
    for column, rows in _columns(store, names):
        out[:, column : column + len(rows)] = _narrow(rows, dtype, names[0], store).T
    return Values.of(out)


def table(store: WeightStore, name: str, precision: str) -> Values:
    """A matrix [rows, columns] in its own orientation: float32, or float16 in every smaller precision."""
    dtype = np.float32 if precision == "fp32" else np.float16
    out = np.empty(store.shape(name), dtype)
    for start, rows in store.chunks(name):
        out[start : start + len(rows)] = _narrow(rows, dtype, name, store)
    return Values.of(out)


def blockwise(store: WeightStore, names: Sequence[str], precision: str) -> tuple[Values, Values]:
    """Projections `names` side by side, quantised: values [in, out] and float32 scales [in / 32, out].

    Each scale minimises its block's squared error over a few candidates (int4) or covers it (int8).
    """
    inputs, widths = _widths(store, names)
    if inputs % c.BLOCK:
        raise UsageError(
            f"{names[0]} has {inputs} inputs, not a multiple of {c.BLOCK}",
            where=str(store.directory),
            mend=f"{precision} needs blocks of {c.BLOCK} weights: build with --precision fp16",
        )
    outputs = sum(widths)
    scales = np.empty((inputs // c.BLOCK, outputs), np.float32)
    whole = np.empty((inputs, outputs), np.int8)
    for column, rows in _columns(store, names):
        _narrow(rows, np.float16, names[0], store)
        values, scale = quantize_rows(rows, precision)
        whole[:, column : column + len(rows)] = values.T
        scales[:, column : column + len(rows)] = scale.T
    if precision == "int8":
        return Values.of(whole), Values.of(scales)
    return Values(pack_int4(whole), onnx.TensorProto.INT4, whole.shape), Values.of(scales)


def channelwise(store: WeightStore, names: Sequence[str], eight: Eight, inputs: Float) -> tuple[Values, Values, Float]:
    """Projections `names` side by side in 8 bits: values [in, out] and float32 scales [out] of the smoothed weights,
    and the factors of the smoothing [in].

    inputs: the largest magnitude of each input [in].
    """
    _, widths = _widths(store, names)
    sizes = np.zeros(len(inputs), np.float32)
    for _, rows in _columns(store, names):
        _narrow(rows, np.float16, names[0], store)
        sizes = np.maximum(sizes, np.abs(rows).max(axis=0))
    factors = eight.factors(inputs, sizes)
    scales = np.empty(sum(widths), np.float32)
    whole = np.empty((len(inputs), sum(widths)), onnx.helper.tensor_dtype_to_np_dtype(eight.item_type))
    for column, rows in _columns(store, names):
        rows = rows * factors
        scale = eight.scale(np.abs(rows).max(axis=1))
        scales[column : column + len(rows)] = scale
        whole[:, column : column + len(rows)] = eight.rounded(rows / scale[:, None]).T
    return Values(whole, eight.item_type, whole.shape), Values.of(scales), factors


def quantize_rows(rows: Float, precision: str) -> tuple[NDArray[np.int8], Float]:
    """Quantise rows [out, in] in blocks along `in`: int8 values [out, in] and scales [out, in / 32]."""
    blocks = rows.reshape(len(rows), -1, c.BLOCK)
    top = _LEVELS[precision]
    if precision == "int8":
        scale = np.abs(blocks).max(axis=2) / top
        return _round(blocks, scale, -top, top).reshape(rows.shape), scale
    scale = _best_int4_scale(blocks)
    return _round(blocks, scale, -top - 1, top).reshape(rows.shape), scale


def pack_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two's-complement nibbles, the earlier value in the low one (ONNX's layout)."""
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    nibbles: NDArray[np.uint8] = flat.view(np.uint8) & np.uint8(0x0F)
    packed: NDArray[np.uint8] = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
    return packed


def _best_int4_scale(blocks: Float) -> Float:
    """The signed scale that maps the weight of largest magnitude near -8, shrunk where that fits the rest better."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    best, least = largest / np.float32(-8), np.full(largest.shape, np.inf, np.float32)
    for share in _SHRINK:
        scale = largest * share / np.float32(-8)
        error = _dequantise_error(blocks, scale)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return np.asarray(best, np.float32)


def _dequantise_error(blocks: Float, scale: Float) -> Float:
    kept = _round(blocks, scale, -8, 7).astype(np.float32) * scale[..., None]
    kept -= blocks
    error: Float = np.einsum("obi,obi->ob", kept, kept)
    return error


def _round(blocks: Float, scale: Float, low: int, high: int) -> NDArray[np.int8]:
    usable = np.abs(scale) >= np.finfo(np.float32).tiny  # one over a smaller scale is infinite; such a block is zero
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)
    return np.asarray(np.clip(np.rint(blocks * inverse[..., None]), low, high), np.int8)


def _narrow(rows: Float, dtype: Any, name: str, store: WeightStore) -> NDArray[Any]:
    """Rows in `dtype`; a smaller one than float32 has to hold every weight, which NaN and 70,000 do not fit."""
    if dtype is np.float32:
        return rows
    with np.errstate(over="ignore"):
        narrow = rows.astype(dtype)
    if not np.isfinite(narrow).all():
        raise UsageError(
            f"{name} has weights that are not finite or too large for a smaller precision",
            where=str(store.directory),
            mend="build with --precision fp32, or mend the checkpoint",
        )
    return narrow


def _widths(store: WeightStore, names: Sequence[str]) -> tuple[int, list[int]]:
    shapes = [store.shape(name) for name in names]
    return shapes[0][1], [shape[0] for shape in shapes]


def _columns(store: WeightStore, names: Sequence[str]) -> Iterator[tuple[int, Float]]:
    """Yield (first output column, rows [n, in]) over the projections in order."""
    column = 0
    for name in names:
        for start, rows in store.chunks(name):
            yield column + start, rows
        column += store.shape(name)[0]
