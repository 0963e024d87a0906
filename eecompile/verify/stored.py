"""The weights that a bundle holds, read back from its graphs under their checkpoint names, as float32.

They serve two checks: that every stored weight is the checkpoint's in the bundle's precision, and, as the weights of
the numpy model, that the engines compute what these weights say (which leaves quantisation out of the comparison).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.runtime import Bundle
from eecompile.schema import GraphInfo
from eecompile.segments.eight import LEAST_SCALE
from eecompile.segments.scaled import SMOOTHING
from eecompile.student.model import DecoderSpec
from eecompile.student.store import TensorLocation, WeightStore
from eecompile.verify.report import Check, Figure, at_most

Float = NDArray[np.float32]
Tensors = Mapping[str, onnx.TensorProto]

E4M3 = ml_dtypes.float8_e4m3fn
HALF_STEP = 0.501  # a rounded weight is within half a quantisation step; float32 divisions may move a tie
SMALLEST_SCALE = {"int8": 0.9999, "int4": 0.79}  # of the scale that just covers the block: int4 may choose less
LARGEST_SCALE = 1.0001
LEVELS = {"int8": (-127, 127), "int4": (-8, 7)}


@dataclass(frozen=True)
class StoredWeight:
    """Where a checkpoint tensor is: [first, first + count) of the columns of a stored matrix [in, out], of a stored
    vector, or of heads [heads, 1, d] that each have a copy of the tensor.

    flipped: the checkpoint has the transpose. scale: where it is quantised, [in / 32, out] of blocks, [out] of outputs.
    smoothing [in]: what its rows are multiplied by, where they are.
    """

    folder: Path
    values: onnx.TensorProto
    scale: onnx.TensorProto | None
    first: int
    count: int
    flipped: bool
    smoothing: onnx.TensorProto | None = None

    def stored(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The part of the stored array and of its scales, as stored."""
        part = np.s_[..., self.first : self.first + self.count]
        values = read_tensor(self.values, self.folder)
        if values.ndim == 3:
            copies = values[self.first : self.first + self.count, 0]
            return copies[0] if (copies == copies[0]).all() else copies, None
        if not self.flipped and values.ndim == 2:
            return values, None
        return values[part], None if self.scale is None else read_tensor(self.scale, self.folder)[part]

    def read(self) -> Float:
        """The tensor in the checkpoint's orientation, dequantised."""
        stored, scale = self.stored()
        values = stored.astype(np.float32)
        if scale is not None:
            values *= scale if scale.ndim == 1 else np.repeat(scale, c.BLOCK, axis=0)
        if self.smoothing is not None:
            values *= read_tensor(self.smoothing, self.folder)[:, None]
        return values.T if self.flipped else values


@dataclass(frozen=True)
class StoredWeights(WeightStore):
    """A bundle's weights as a checkpoint for the numpy model. A tied head that is quantised has values of its own."""

    parts: Mapping[str, StoredWeight] = field(default_factory=dict)

    def read(self, name: str) -> Float:
        """The tensor called `name` in the checkpoint, float32."""
        return self.parts[name].read()

    def chunks(self, name: str) -> Iterator[tuple[int, Float]]:
        """The whole tensor at once: it is one matrix of one layer."""
        yield 0, self.read(name)


def stored_weights(root: Path, manifest: Manifest, spec: DecoderSpec) -> tuple[StoredWeights, DecoderSpec]:
    """The bundle's weights under checkpoint names, and the spec to read them with (its head stands by itself where the
    stored head is not the stored embedding)."""
    parts: dict[str, StoredWeight] = {}
    graphs = manifest.graphs
    encoder = [] if graphs.encoder is None else [graphs.encoder]
    for info in (graphs.embed, *encoder, *graphs.segments, *graphs.exits):
        parts |= _parts(root, info, spec)
    head = _parts(root, manifest.graphs.head, spec)
    if spec.tied and manifest.precision in c.QUANTISED:
        head = {spec.names.head: head[spec.names.embed]} if spec.names.embed in head else {}
        spec = replace(spec, tied=False)
    parts |= head
    shapes = spec.shapes()
    locations = {n: TensorLocation(root, "F32", shapes[n], 0, 0) for n in parts if n in shapes}
    return StoredWeights(root, locations, parts=parts), spec


def stored_module(bundle: Bundle, exit_: int, spec: DecoderSpec) -> StoredWeights:
    """The weights of an exit's module; `spec` describes the model of such layers (student.modules)."""
    root = bundle.files.path
    parts = _parts(root, bundle.manifest.graphs.exits[exit_], spec)
    shapes = spec.shapes()
    return StoredWeights(root, {n: TensorLocation(root, "F32", shapes[n], 0, 0) for n in parts}, parts=parts)


def graph_tensors(root: Path, info: GraphInfo) -> tuple[onnx.ModelProto, Tensors]:
    """A graph of the bundle without its weights, and its initialisers by name."""
    model = onnx.load(str(root / info.path), load_external_data=False)
    return model, {tensor.name: tensor for tensor in model.graph.initializer}


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """A graph's initialiser as an array; `folder` is the graph's."""
    copy = onnx.TensorProto()  # loading fills in the proto, which would then stay in memory
    copy.CopyFrom(tensor)
    array: NDArray[Any] = onnx.numpy_helper.to_array(copy, str(folder))
    return array.astype(np.int8) if array.dtype == ml_dtypes.int4 else array


def check_weights(stored: StoredWeights, names: Sequence[str], source: WeightStore, aliases: Mapping[str, str],
                  precision: str, *, label: str = "weights") -> Check:  # fmt: skip
    """That every weight of the bundle is the checkpoint's: equal, rounded to float16, or the nearest quantised value.

    names: the tensors the model needs. aliases: the checkpoint's name where it differs from the stored one. label: the
    check's name.
    """
    missing = [name for name in names if name not in stored.parts]
    wrong: list[str] = []
    steps = 0.0
    for name in names:
        if name in missing:
            continue
        part, expected = stored.parts[name], source.read(aliases.get(name, name))
        same, worst = is_rounded(part, expected, precision)
        steps = max(steps, worst)
        if not same:
            wrong.append(name)
    figures: dict[str, Figure] = {"tensors": len(names), "missing": len(missing), "different": len(wrong)}
    tolerance = {"missing": at_most(0), "different": at_most(0)}
    if precision in (*c.QUANTISED, "w8a8"):
        figures["steps"], tolerance["steps"] = steps, at_most(HALF_STEP)
    bad = [*missing, *wrong]
    told = f"; not so: {', '.join(bad[:3])}{' ..' if len(bad) > 3 else ''}" if bad else ""
    return Check(label, not bad, figures, tolerance, f"every stored weight is the checkpoint's in {precision}{told}")


def _parts(root: Path, info: GraphInfo, spec: DecoderSpec) -> dict[str, StoredWeight]:
    _, tensors = graph_tensors(root, info)
    shapes, heads = spec.shapes(), (spec.heads, spec.kv_heads)
    folder = (root / info.path).parent
    parts: dict[str, StoredWeight] = {}
    for name, values in tensors.items():
        whole = name.removesuffix(".table")
        names, first = whole.split("+"), 0
        if any(n not in shapes for n in names):
            continue  # constants, scales, rope tables, adapters
        for i, n in enumerate(names):
            flipped = len(shapes[n]) == 2 and whole == name
            count = heads[i] if len(values.dims) == 3 else shapes[n][0]  # the norms of queries and keys
            more = (tensors.get(f"{name}.scale"), first, count, flipped, tensors.get(name + SMOOTHING))
            parts[n] = StoredWeight(folder, values, *more)
            first += count
    return parts


def is_rounded(part: StoredWeight, expected: Float, precision: str) -> tuple[bool, float]:
    """Whether the stored tensor is `expected` in its precision; and the worst rounding in quantisation steps."""
    values, scale = part.stored()
    smoothing = None if part.smoothing is None else read_tensor(part.smoothing, part.folder)
    values = values.T if part.flipped else values
    if values.shape != expected.shape:
        return False, 0.0
    if scale is None:
        with np.errstate(over="ignore"):
            return bool(np.array_equal(values, expected.astype(values.dtype))), 0.0
    if scale.ndim == 1:
        smoothed = expected if smoothing is None else expected / smoothing
        return _is_scaled(values.astype(np.float32), scale[:, None], smoothed, precision)
    return _is_quantised(values.astype(np.float32), scale.T, expected, precision)


def _is_scaled(values: Float, scale: Float, expected: Float, precision: str) -> tuple[bool, float]:
    """values [out, in] are expected / scale [out, 1], rounded; scales are no larger than float16 makes them, or powers
    of two of 8-bit floats, but for the least there is."""
    integers = precision == "w8a8"
    most, slack = (127.0, 1 + 2**-9) if integers else (float(ml_dtypes.finfo(E4M3).max), 2.0)
    largest = np.abs(expected).max(axis=1, keepdims=True)
    fits = (largest <= most * scale * LARGEST_SCALE) & ((largest * slack > most * scale) | (scale == LEAST_SCALE))
    exact = expected / scale
    if integers:
        worst = float(np.abs(values - np.clip(exact, -most, most)).max(initial=0.0))
        return bool(worst <= HALF_STEP and fits.all()), worst
    powers = np.frexp(scale)[0] == 0.5
    return bool(np.array_equal(values, exact.astype(E4M3).astype(np.float32)) and (fits & powers).all()), 0.0


def _is_quantised(values: Float, scale: Float, expected: Float, precision: str) -> tuple[bool, float]:
    """values [out, in] are expected / scale [out, in / 32], rounded and clipped; scales cover their blocks."""
    low, high = LEVELS[precision]
    blocks = expected.reshape(*scale.shape, c.BLOCK)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(scale[..., None] == 0, 0, blocks / scale[..., None])
        cover = np.abs(scale) * -low / np.abs(blocks).max(axis=2)
    worst = np.abs(values.reshape(blocks.shape) - np.clip(exact, low, high)).max(initial=0.0)
    empty = (scale == 0) & (blocks == 0).all(axis=2)
    covers = empty | ((cover >= SMALLEST_SCALE[precision]) & (cover <= LARGEST_SCALE))
    return bool(worst <= HALF_STEP and covers.all()), float(worst)
