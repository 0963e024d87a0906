"""Weights in each precision: layout, error bounds, and what ONNX Runtime makes of the stored values."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.pipeline import BuildOptions, build
from eecompile.runtime.trace import Tracer
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import blockwise, dense, pack_int4, quantize_rows, table
from eecompile.segments.weights import WeightBook
from eecompile.student.reference import ReferenceModel
from eecompile.student.store import WeightStore
from eecompile.student.student import open_student
from eecompile.target import load_target

RNG = np.random.default_rng(5)
TENSORS = {
    "a": RNG.standard_normal((5, 64)).astype(np.float32),
    "b": RNG.standard_normal((3, 64)).astype(np.float32),
}
NAMES = ["a", "b"]
ROWS = hnp.arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32))


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    tiny.write_safetensors(tmp_path / "model.safetensors", TENSORS)
    return WeightStore.open(tmp_path)


def dequantised(rows: Any, precision: str) -> Any:
    values, scales = quantize_rows(rows, precision)
    return (values.reshape(len(rows), -1, c.BLOCK) * scales[..., None]).reshape(rows.shape)


def test_dense_matrices_lie_side_by_side_transposed(store: WeightStore) -> None:
    expected = np.concatenate([TENSORS["a"].T, TENSORS["b"].T], axis=1)
    np.testing.assert_array_equal(dense(store, NAMES, "fp32").data, expected)
    np.testing.assert_array_equal(dense(store, NAMES, "fp16").data, expected.astype(np.float16))


def test_tables_keep_their_orientation(store: WeightStore) -> None:
    np.testing.assert_array_equal(table(store, "a", "fp32").data, TENSORS["a"])
    for precision in ("fp16", "int8", "int4"):
        np.testing.assert_array_equal(table(store, "a", precision).data, TENSORS["a"].astype(np.float16))


@given(rows=ROWS)
def test_int8_is_within_half_a_step(rows: Any) -> None:
    values, scales = quantize_rows(rows, "int8")
    assert values.min() >= -127
    error = np.abs(dequantised(rows, "int8") - rows).reshape(3, -1, c.BLOCK).max(axis=2)
    assert (error <= 0.5001 * scales + 1e-30).all()


@given(rows=ROWS)
def test_int4_is_no_worse_than_a_plain_scale(rows: Any) -> None:
    values, scales = quantize_rows(rows, "int4")
    assert -8 <= values.min() <= values.max() <= 7
    blocks = rows.reshape(3, -1, c.BLOCK).astype(np.float64)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    step = np.where(largest == 0, 1, largest / -8)
    plain = (np.clip(np.rint(blocks / step), -8, 7) * step - blocks).reshape(3, -1, c.BLOCK)
    ours = (dequantised(rows, "int4").astype(np.float64) - rows).reshape(3, -1, c.BLOCK)
    scale = np.square(blocks).sum(axis=2)
    assert (np.square(ours).sum(axis=2) <= np.square(plain).sum(axis=2) + 1e-5 * scale + 1e-30).all()
    assert np.isfinite(scales).all()


def test_int4_search_gains_on_normal_weights() -> None:
    rows = RNG.standard_normal((64, 256)).astype(np.float32)
    relative = np.square(dequantised(rows, "int4") - rows).mean() / np.square(rows).mean()
    assert relative < 0.0085  # the largest-weight scale alone: 0.0097
    assert np.square(dequantised(rows, "int8") - rows).mean() / np.square(rows).mean() < 5e-5


@pytest.mark.parametrize("precision", c.QUANTISED)
def test_zeros_stay_zero(precision: str) -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1, 40] = 3
    np.testing.assert_allclose(dequantised(rows, precision), rows, rtol=1e-6)


@given(values=hnp.arrays(np.int8, st.integers(1, 33), elements=st.integers(-8, 7)))
def test_nibbles_unpack_to_what_was_packed(values: Any) -> None:
    packed = pack_int4(values)
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=values.shape, raw_data=packed.tobytes())
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values)


@pytest.mark.parametrize("precision", c.QUANTISED)
def test_onnx_runtime_reads_back_the_same_matrix(tmp_path: Path, store: WeightStore, precision: str) -> None:
    book = WeightBook(tmp_path)
    g = GraphWriter("g", book)
    values, scales = blockwise(store, NAMES, precision)
    parts = [g.weight("v", lambda: values), g.weight("s", lambda: scales)]
    g.output(g.op("DequantizeLinear", *parts, axis=0, block_size=c.BLOCK), "y", "float32", 64, 8)
    g.save(tmp_path / "g.onnx")
    book.close()
    (y,) = tiny.ort_session(tmp_path / "g.onnx").run(None, {})
    expected = np.concatenate([dequantised(TENSORS[n], precision) for n in NAMES])
    np.testing.assert_allclose(y, expected.T, rtol=1e-6)


@pytest.mark.parametrize("precision", c.QUANTISED)
@pytest.mark.parametrize("changes", [{"hidden_size": 40}, {"intermediate_size": 80}, {"head_dim": 10}])
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, precision: str, changes: dict[str, int]) -> None:
    student = open_student(tiny.checkpoint(tmp_path / "checkpoint", tiny.config(**changes)))
    with pytest.raises(UsageError, match=r"not a multiple of 32(.|\n)*--precision fp16"):
        build(student, load_target("cpu"), tmp_path / "bundle", BuildOptions(precision=precision))
    assert not (tmp_path / "bundle").exists()


def rounded(name: str, tensor: Any, precision: str) -> Any:
    """What a bundle of this precision keeps of a weight."""
    if tensor.ndim == 1 or precision == "fp32":
        return tensor
    if precision == "fp16" or "embed" in name:
        return tensor.astype(np.float16).astype(np.float32)
    return dequantised(tensor, precision)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 1e-5), ("int8", 0.05), ("int4", 0.05)])
def test_a_bundle_computes_the_rounded_weights(tmp_path: Path, shelf: Any, precision: str, most: float) -> None:
    """Relative error of the finished rows. ONNX Runtime's kernels for int8 and int4 round the activations too."""
    settings, ids = tiny.config(), RNG.integers(0, tiny.VOCAB, 40).tolist()
    weights = tiny.weights(settings, gain=0.3)
    student = open_student(
        tiny.checkpoint(tmp_path, settings, {n: rounded(n, t, precision) for n, t in weights.items()})
    )
    _, expected, _ = ReferenceModel(student.spec, student.store).run(ids, [])
    found = Tracer(shelf.bundle(settings, precision=precision, gain=0.3), boundaries=True).trace(ids).boundaries
    assert found is not None
    assert np.linalg.norm(found[-1] - expected) / np.linalg.norm(expected) < most
