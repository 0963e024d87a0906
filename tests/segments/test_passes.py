"""Passes: what each writes computes the same, and the check of a dialect names what does not belong."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import TensorInfo
from eecompile.segments.device import device_form
from eecompile.segments.graph import Form, GraphWriter
from eecompile.segments.passes.attention import every, has_softcap, lower_attention
from eecompile.segments.passes.check import check_dialect
from eecompile.segments.passes.half import compute_in
from eecompile.segments.passes.norm import lower_norms
from eecompile.segments.passes.rotary import lower_rotary
from eecompile.segments.passes.scatter import lower_scatter
from eecompile.segments.weights import WeightBook

Arrays = dict[str, Any]
Write = Callable[[GraphWriter], None]
RNG = np.random.default_rng(0)


def run(folder: Path, write: Write, inputs: Arrays, *passes: Any) -> tuple[Arrays, onnx.ModelProto]:
    """Outputs by name, and the model."""
    book = WeightBook(folder)
    g = GraphWriter("g", book, form=Form(passes=passes))
    write(g)
    info = g.save(folder / "g.onnx")
    book.close()
    values = tiny.ort_session(folder / "g.onnx").run(None, inputs)
    model = onnx.load(folder / "g.onnx", load_external_data=False)
    return dict(zip([t.name for t in info.outputs], values, strict=True)), model


def both(folder: Path, write: Write, inputs: Arrays, rewrite: Any) -> tuple[Arrays, Arrays, list[str]]:
    """Outputs without a pass and with it, and the operators that it leaves."""
    (folder / "plain").mkdir()
    expected, _ = run(folder / "plain", write, inputs)
    actual, model = run(folder, write, inputs, rewrite)
    return actual, expected, [node.op_type for node in model.graph.node]


def test_a_norm(tmp_path: Path) -> None:
    def write(g: GraphWriter) -> None:
        x = g.input("x", "float32", "N", 6)
        scale = g.array("scale", lambda: np.arange(6, dtype=np.float32))
        g.output(g.op("RMSNormalization", x, scale, axis=-1, epsilon=0.1), "y", "float32", "N", 6)

    x = RNG.standard_normal((4, 6)).astype(np.float32)
    actual, expected, kinds = both(tmp_path, write, {"x": x}, lower_norms)
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5)
    np.testing.assert_allclose(actual["y"], x / np.sqrt((x * x).mean(1, keepdims=True) + 0.1) * np.arange(6), rtol=1e-5)
    assert "RMSNormalization" not in kinds


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
def test_a_rotation(tmp_path: Path, interleaved: int, turned: int) -> None:
    def write(g: GraphWriter) -> None:
        x, positions = g.input("x", "float32", "B", 3, "R", 8), g.input(c.POSITIONS, "int64", "B", "R")
        half = (turned or 8) // 2
        angles = np.arange(20, dtype=np.float32)[:, None] * np.linspace(1, 0.1, half, dtype=np.float32)
        tables = g.array("cos", lambda: np.cos(angles)), g.array("sin", lambda: np.sin(angles))
        how = {"interleaved": interleaved, **({"rotary_embedding_dim": turned} if turned else {})}
        for name in ("y", "z"):  # the second one has the rows of the first
            x = g.op("RotaryEmbedding", x, *tables, positions, **how)
            g.output(x, name, "float32", "B", 3, "R", 8)

    x = RNG.standard_normal((2, 3, 5, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 18, 19]])
    actual, expected, kinds = both(tmp_path, write, {"x": x, c.POSITIONS: positions}, lower_rotary)
    for name in ("y", "z"):
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-6)
    assert "RotaryEmbedding" not in kinds
    assert kinds.count("Unsqueeze") == 2


@pytest.mark.parametrize("how", [{}, {"scale": 0.7}, {"scale": 1.0}, {"softcap": 2.0}, {"scale": 0.3, "softcap": 1.5}])
def test_attention(tmp_path: Path, how: dict[str, float]) -> None:
    """Held against float64: what bounds the scores comes before the mask."""

    def write(g: GraphWriter) -> None:
        names = [g.input(name, "float32", "B", 2, n, 4) for name, n in (("q", "R"), ("k", "T"), ("v", "T"))]
        mask = g.input("mask", "float32", "B", 1, "R", "T")
        g.output(g.op("Attention", *names, mask, **how), "y", "float32", "B", 2, "R", 4)

    inputs = {
        name: 2 * RNG.standard_normal((2, 2, n, 4)).astype(np.float32) for name, n in (("q", 3), ("k", 7), ("v", 7))
    }
    inputs["mask"] = np.where(RNG.random((2, 1, 3, 7)) < 0.4, np.float32(-1e30), np.float32(0))
    inputs["mask"][..., 0] = 0
    actual, _, kinds = both(tmp_path, write, inputs, partial(lower_attention, head_dim=4, which=every))
    scores = inputs["q"].astype(np.float64) @ inputs["k"].transpose(0, 1, 3, 2) * how.get("scale", 0.5)
    if "softcap" in how:
        scores = how["softcap"] * np.tanh(scores / how["softcap"])
    shares = np.exp(scores + inputs["mask"] - scores.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(actual["y"], shares / shares.sum(-1, keepdims=True) @ inputs["v"], atol=1e-5)
    assert "Attention" not in kinds
    (tmp_path / "bounded").mkdir()
    _, model = run(tmp_path / "bounded", write, inputs, partial(lower_attention, head_dim=4, which=has_softcap))
    assert ("Attention" in [node.op_type for node in model.graph.node]) == ("softcap" not in how)


@given(start=st.lists(st.integers(0, 8), min_size=1, max_size=3), rows=st.integers(1, 4), heads=st.integers(1, 3))
def test_a_scatter(tmp_path_factory: Any, start: list[int], rows: int, heads: int) -> None:
    def write(g: GraphWriter) -> None:
        cache = g.input("key_cache_0", "float32", "B", heads, c.LENGTH, 2)
        update, place = g.input("update", "float32", "B", heads, "R", 2), g.input(c.WRITE_INDEX, "int64", "B")
        g.output(g.op("TensorScatter", cache, update, place, axis=2), "y", "float32", "B", heads, c.LENGTH, 2)

    cache = RNG.standard_normal((len(start), heads, 12, 2)).astype(np.float32)
    update = RNG.standard_normal((len(start), heads, rows, 2)).astype(np.float32)
    expected = cache.copy()
    for slot, first in enumerate(start):
        expected[slot, :, first : first + rows] = update[slot]
    inputs = {"key_cache_0": cache, "update": update, c.WRITE_INDEX: np.array(start)}
    folder = tmp_path_factory.mktemp("scatter")
    actual, model = run(folder, write, inputs, partial(lower_scatter, which=lambda dtype: True))
    np.testing.assert_array_equal(actual["y"], expected)
    assert "TensorScatter" not in [node.op_type for node in model.graph.node]


# -- 16-bit computing -------------------------------------------------------------------------------------------


def mixed(g: GraphWriter) -> None:
    """A residual stream with a norm, a product and an activation, an output in the middle, and a mask."""
    x = g.input("x", "float32", "N", 4)
    w = g.array("w", lambda: np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))
    normed = g.op("RMSNormalization", x, g.array("scale", lambda: np.ones(4, np.float32)), axis=-1, epsilon=1e-5)
    inner = g.op("MatMul", normed, w)
    g.output(inner, "inner", "float32", "N", 4)
    seen = g.op("Where", g.op("Less", x, g.constant(0.0, np.float32)), *(g.constant(v, np.float32) for v in (0, -1e30)))
    g.output(g.op("Add", g.op("Softmax", g.op("Add", inner, seen), axis=-1), x), "y", "float32", "N", 4)


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_types_inside_and_at_the_edges(tmp_path: Path, compute: Any) -> None:
    book = WeightBook(tmp_path)
    g = GraphWriter("g", book, form=Form(passes=(partial(compute_in, compute=compute),)))
    mixed(g)
    g.save(tmp_path / "g.onnx")
    book.close()
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "g.onnx"), strict_mode=True, check_type=True)
    small = helper.np_dtype_to_tensor_dtype(np.dtype(np.float16)) if compute == "float16" else TensorProto.BFLOAT16
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    by_kind = {node.op_type: types.get(node.output[0]) for node in model.graph.node}
    assert by_kind["MatMul"] == by_kind["Softmax"] == by_kind["Where"] == small
    assert by_kind["RMSNormalization"] == TensorProto.FLOAT
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    assert f"w.{compute}" in {t.name for t in model.graph.initializer}
    assert "w" not in {t.name for t in model.graph.initializer}
    assert book.stored[f"w.{compute}"].file == "device.weights"


def test_a_masked_score_is_nothing_in_float16(tmp_path: Path) -> None:
    x = np.array([[1, -2, 3, -4]], np.float32)
    actual, expected, kinds = both(tmp_path, mixed, {"x": x}, partial(compute_in, compute="float16"))
    assert np.isfinite(actual["y"]).all()
    np.testing.assert_allclose(actual["y"], expected["y"], atol=2e-3)
    np.testing.assert_array_equal(actual["y"][x >= 0], x[x >= 0])
    assert kinds.count("Cast") == 3  # into the product, out of it, and out of the softmax


def test_squares_are_taken_in_float32(tmp_path: Path) -> None:
    """A norm of values whose squares float16 does not hold, in operators of opset 20 as well."""

    def write(g: GraphWriter) -> None:
        x = g.input("x", "float32", "N", 4)
        w = g.array("w", lambda: np.eye(4, dtype=np.float32))
        ones = g.array("scale", lambda: np.ones(4, np.float32))
        normed = g.op("RMSNormalization", g.op("MatMul", x, w), ones, axis=-1, epsilon=1e-5)
        g.output(normed, "y", "float32", "N", 4)

    x = np.array([[1000, -2000, 3000, 500]], np.float32)
    for name, passes in (("modern", ()), ("classic", (lower_norms,))):
        (tmp_path / name).mkdir()
        actual, _ = run(tmp_path / name, write, {"x": x}, *passes, partial(compute_in, compute="float16"))
        np.testing.assert_allclose(actual["y"], x / np.sqrt((x * x).mean()), rtol=2e-3)


def test_a_weight_that_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    def write(g: GraphWriter) -> None:
        x = g.input("x", "float32", "N", 1)
        g.output(g.op("MatMul", x, g.array("w", lambda: np.full((1, 1), 1e5, np.float32))), "y", "float32", "N", 1)

    with pytest.raises(UsageError, match="w has values that are not finite or too large"):
        run(tmp_path, write, {}, partial(compute_in, compute="float16"))


def test_gates_whose_weights_are_inputs_stay_float32(tmp_path: Path) -> None:
    def write(g: GraphWriter) -> None:
        x, w = g.input("x", "float32", "N", 4), g.input("w", "float32", 4, 1)
        g.output(g.op("Sigmoid", g.op("MatMul", x, w)), "y", "float32", "N", 1)

    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 1)))
    actual, expected, kinds = both(tmp_path, write, {"x": x, "w": w}, partial(compute_in, compute="float16"))
    np.testing.assert_array_equal(actual["y"], expected["y"])
    assert "Cast" not in kinds


# -- the check of a dialect -------------------------------------------------------------------------------------


DOMAINS = [helper.make_opsetid(name, 1) for name in ("other", c.DECISION_DOMAIN)]


def model_of(*nodes: onnx.NodeProto, opset: int = 20, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, dtype, ["N", 4]) for name in "xy")
    graph = helper.make_graph(list(nodes), "segment_7", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *DOMAINS])


def node(kind: str, *inputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs or ("x",)), ["y"], name=f"{kind}_3", domain=domain, **attributes)


FAULTS: dict[str, tuple[onnx.ModelProto, str]] = {
    "operator": (model_of(node("Erf")), "node Erf_3, operator Erf: not an operator of the dialect classic"),
    "newer": (model_of(node("RMSNormalization", "x", "x"), opset=24), "opset 24 is newer"),
    "domain": (model_of(node("Relu", domain="other")), "its domain other is not standard"),
    "type": (model_of(node("And", "x", "x")), "not a valid graph|x is of type FLOAT"),
    "double": (model_of(node("Relu"), dtype=TensorProto.DOUBLE), "x is of type DOUBLE"),
    "attribute": (model_of(node("Relu", unknown=1)), "not a valid graph|the attribute unknown"),
    "axes": (model_of(node("ReduceSum", "x", "x"), dtype=TensorProto.INT64), "its input x has to be a constant"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_node_that_does_not_belong_is_named(name: str) -> None:
    model, message = FAULTS[name]
    with pytest.raises(UsageError, match=message) as caught:
        check_dialect(model, dialect="classic")
    assert caught.value.where == "segment_7"


def test_what_belongs_passes() -> None:
    check_dialect(model_of(node("Relu")), dialect="classic")
    check_dialect(model_of(node("Softmax", axis=-1)), dialect="classic")
    decision = helper.make_node(c.DECISION_OP, ["x", "x"], ["y"], domain=c.DECISION_DOMAIN)
    check_dialect(model_of(decision), dialect="classic")


def test_a_written_graph_is_checked(tmp_path: Path) -> None:
    g = GraphWriter("g", WeightBook(tmp_path), form=device_form(8, 64, dialect="classic", opset=20, compute="float16"))
    x = g.input("x", "float32", "N")
    g.output(g.op("Erf", x), "y", "float32", "N")
    with pytest.raises(UsageError, match=r"node Erf_0, operator Erf"):
        g.save(tmp_path / "g.onnx")
    assert not (tmp_path / "g.onnx").exists()


def test_the_modern_dialect_needs_its_opset() -> None:
    with pytest.raises(UsageError, match="needs opset 24, and the target takes 21"):
        device_form(8, 64, dialect="modern", opset=21, compute="float16")
    form = device_form(8, 64, dialect="modern", opset=26, compute="float16")
    assert form.opset == 24
    assert form.fixed([TensorInfo(name="k", dtype="float16", shape=["B", 2, "T", 8])])[0].shape == ["B", 2, 64, 8]
