"""The graph writer: what it writes is valid, shared where it can be, and the same every time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, numpy_helper

from eecompile.segments.graph import OPSET, GraphWriter
from eecompile.segments.weights import Values, WeightBook

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def written(folder: Path) -> onnx.ModelProto:
    """y = 2 (x @ MATRIX) with MATRIX in a weight file and 2 in the graph."""
    book = WeightBook(folder)
    g = GraphWriter("small", book)
    x = g.input("x", "float32", "N", 3)
    product = g.op("MatMul", x, g.array("matrix", lambda: MATRIX))
    g.output(g.op("Mul", product, g.constant(2, np.float32)), "y", "float32", "N", 4)
    info = g.save(folder / "small.onnx", layers=1)
    book.close()
    assert (info.path, info.layers) == ("segments/small.onnx", 1)
    assert [(t.name, t.dtype, t.shape) for t in info.inputs] == [("x", "float32", ["N", 3])]
    assert [(t.name, t.dtype, t.shape) for t in info.outputs] == [("y", "float32", ["N", 4])]
    return onnx.load(folder / "small.onnx", load_external_data=False)


def test_a_written_graph_is_valid_and_runs(tmp_path: Path) -> None:
    model = written(tmp_path)
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    (y,) = tiny.ort_session(tmp_path / "small.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y, 2 * x @ MATRIX, rtol=1e-6)


def test_weights_are_outside_and_constants_inside(tmp_path: Path) -> None:
    external = {t.name: t.data_location == TensorProto.EXTERNAL for t in written(tmp_path).graph.initializer}
    assert external.pop("matrix")
    assert list(external.values()) == [False]


def test_the_same_graph_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
    for file in ("small.onnx", "small.weights"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_constants_are_shared_when_equal_and_only_then(tmp_path: Path) -> None:
    g = GraphWriter("g", WeightBook(tmp_path))
    long = list(range(40))
    values = [1, [1], [[1]], [0, 1], long, [*long[:-1], 7], []]
    names = [*(g.constant(value) for value in values), g.constant(1, np.float32)]
    assert len(set(names)) == len(names)
    assert g.constant([1]) == names[1]
    assert g.constant(long) == names[4]


def test_an_output_takes_its_name_or_an_identity(tmp_path: Path) -> None:
    g = GraphWriter("g", WeightBook(tmp_path))
    x = g.input("x", "float32", 2)
    g.output(g.op("Neg", x, named="y"), "y", "float32", 2)
    g.output(g.op("Abs", x), "z", "float32", 2)
    g.save(tmp_path / "g.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node]
    assert kinds == ["Neg", "Abs", "Identity"]


def test_a_weight_is_made_once_for_all_graphs(tmp_path: Path) -> None:
    book, made = WeightBook(tmp_path), []

    def make() -> Values:
        made.append(1)
        return Values.of(MATRIX)

    for name, prefix in (("one", ""), ("two", ""), ("three", "segments/")):
        g = GraphWriter(name, book, prefix=prefix)
        g.weight("shared", make, "shared.weights")
        g.weight("shared", make)
        g.save(tmp_path / f"{name}.onnx")
    book.close()
    assert len(made) == 1
    places = []
    for name in ("one", "two", "three"):
        (tensor,) = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer
        places.append({e.key: e.value for e in tensor.external_data})
    assert places[0] == places[1] == {"location": "shared.weights", "offset": "0", "length": "48"}
    assert places[2] == {**places[0], "location": "segments/shared.weights"}
    assert sorted(p.name for p in tmp_path.glob("*.weights")) == ["shared.weights"]


def test_tensors_lie_aligned_and_hashed(tmp_path: Path) -> None:
    import hashlib

    book = WeightBook(tmp_path)
    stored = [book.tensor("w", str(n), lambda n=n: Values.of(np.full(n, n, np.float32))) for n in (1, 3, 16, 5)]
    book.tensor("other", "half", lambda: Values.of(np.ones(3, np.float16)))
    book.close()
    data = (tmp_path / "w").read_bytes()
    for n, tensor in zip((1, 3, 16, 5), stored, strict=True):
        assert tensor.offset % 64 == 0
        np.testing.assert_array_equal(np.frombuffer(data, np.float32, n, tensor.offset), np.full(n, n))
    assert book.hashes == {f: hashlib.sha256((tmp_path / f).read_bytes()).hexdigest() for f in ("w", "other")}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_values_keep_their_type(tmp_path: Path, dtype: type) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    book = WeightBook(tmp_path)
    g = GraphWriter("g", book)
    g.output(g.array("w", lambda: array), "y", "float32", 2, 3)
    g.save(tmp_path / "g.onnx")
    book.close()
    (tensor,) = onnx.load(tmp_path / "g.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)


def test_columns_of_a_transposed_array_are_stored_in_order(tmp_path: Path) -> None:
    book = WeightBook(tmp_path)
    book.tensor("w", "t", lambda: Values.of(MATRIX.T))
    book.close()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "w", np.float32), MATRIX.T.reshape(-1))
