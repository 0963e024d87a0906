"""ONNX graphs whose interface, operators or external data are not as a bundle needs them are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_bundle import accept_core, accept_manifest, edit_document, external_tensor, refuse

from eecompile import contract as c
from eecompile.bundle import graphs
from eecompile.bundle.graphs import tensor_bytes
from eecompile.bundle.read import read_bundle

SEGMENT = "segments/segment_0.onnx"


def edit_graph(bundle: Path, edit: Callable[[Any], object], name: str = SEGMENT) -> None:
    """Change a graph and make the manifest's hashes agree, as an attacker would."""
    model = onnx.ModelProto.FromString((bundle / name).read_bytes())
    edit(model)
    (bundle / name).write_bytes(model.SerializeToString())
    accept_core(bundle)


def set_external(bundle: Path, **fields: str | None) -> None:
    """Set or drop fields of the segment's external weight."""

    def edit(model: Any) -> None:
        tensor = model.graph.initializer[0]
        known = {e.key: e.value for e in tensor.external_data} | fields
        del tensor.external_data[:]
        for key, value in known.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    edit_graph(bundle, edit)


def subgraph(tensor: Any) -> Any:
    """An If node that hides `tensor` in a branch."""
    branch = helper.make_graph([helper.make_node("Identity", ["w2"], ["b"])], "branch", [], [], [tensor])
    return helper.make_node("If", ["hidden"], ["x"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.graph.input[0].ClearField("name"), r"its inputs are \[''\]; the manifest says \['hidden'\]"),
        (lambda m: m.graph.output.add(name="more"), "its outputs are"),
        (lambda m: m.graph.input.pop(), r"its inputs are \[\]"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 10), "input hidden is float16"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 6), "input hidden is of ONNX type 6"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "of no declared shape"),
        (lambda m: m.graph.input[0].type.Clear(), "input hidden is of ONNX type 0"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), r"is float32 \['B', 'R'\]; the manifest"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 5), r"\['B', 'R', 5\]"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "Q"), r"\['Q', 'R', 4\]"),
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim[1].Clear(), r"\['B', None, 4\]"),
        (lambda m: setattr(m.graph.node[0], "domain", "com.example"), "operator of the domain 'com.example'"),
        (lambda m: m.functions.add(name="F", domain="com.evil"), "function of the domain 'com.evil'"),
        (
            lambda m: m.functions.add(name="F", domain=c.DECISION_DOMAIN).node.add(op_type="X", domain="x"),
            "operator of the domain 'x'",
        ),
        (lambda m: m.ClearField("graph"), "no graph, or training information"),
        (lambda m: m.training_info.add(), "no graph, or training information"),
        (lambda m: m.graph.sparse_initializer.add(), "a sparse tensor"),
        (lambda m: m.graph.node[0].attribute.add(name="a").sparse_tensor.dims.append(1), "a sparse tensor"),
        (lambda m: m.graph.initializer[0].dims.append(-1), r"has the shape \[4, -1\]"),
        (lambda m: m.graph.initializer[0].dims.append(1 << 40), r"has the shape \[4, 1099511627776\]"),
        (lambda m: m.graph.initializer[0].dims.append(3), "takes 16 bytes where its shape needs 48"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "and type 8"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "and type 99"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", 0), "has external data but does not say so"),
        (lambda m: m.graph.initializer.add(name="i", dims=[-1], data_type=6, int32_data=[1]), r"has the shape \[-1\]"),
        (lambda m: m.graph.initializer.add(name="r", dims=[3], data_type=1, raw_data=b"1234"), "holds 4 bytes"),
        (lambda m: m.graph.initializer.append(external_tensor("v", [4], "../policy.json", 0)), "'..' component"),
        (
            lambda m: m.graph.node.append(subgraph(external_tensor("v", [4], "/etc/passwd", 0))),
            "the path is absolute",
        ),
        (
            lambda m: m.graph.node.append(
                helper.make_node("Constant", [], ["k"], value=external_tensor("v", [4], "nowhere", 0))
            ),
            "lies in segments/nowhere",
        ),
        (
            lambda m: (
                m.functions.add(name="F", domain=c.DECISION_DOMAIN)
                .attribute_proto.add(name="a", type=4)
                .t.CopyFrom(external_tensor("v", [4], "nowhere", 0))
            ),
            "lies in segments/nowhere",
        ),
    ],
)
def test_graphs_that_are_refused(bundle: Path, edit: Callable[[Any], object], message: str) -> None:
    edit_graph(bundle, edit)
    refuse(bundle, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": None}, "the path is empty"),
        ({"location": ""}, "the path is empty"),
        ({"location": "/etc/passwd"}, "the path is absolute"),
        ({"location": "../segments/all.weights"}, "'..' component"),
        ({"location": "./all.weights"}, "'.' or '..' component"),
        ({"location": "..\\all.weights"}, "a backslash"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "not among the manifest's files"),
        ({"location": "../manifest.json"}, "'..' component"),
        ({"offset": "-1"}, "the offset or length '-1'"),
        ({"offset": "0x10"}, "the offset or length '0x10'"),
        ({"offset": "9" * 30}, "the offset or length"),
        ({"offset": "49"}, "ends at byte 65 of segments/all.weights, which has 64"),
        ({"length": "15"}, "takes 15 bytes where its shape needs 16"),
        ({"prepacked": "1"}, "describes its external data with"),
    ],
)
def test_external_data_that_is_refused(bundle: Path, fields: dict[str, str | None], message: str) -> None:
    set_external(bundle, **fields)
    refuse(bundle, message)


def test_external_data_that_is_read(bundle: Path) -> None:
    set_external(bundle, offset="48", length=None)
    read_bundle(bundle)
    set_external(bundle, offset=None)
    read_bundle(bundle)


def test_external_data_described_twice(bundle: Path) -> None:
    edit_graph(bundle, lambda m: m.graph.initializer[0].external_data.add(key="location", value="/etc/passwd"))
    refuse(bundle, "describes its external data with")


def test_the_weights_have_to_be_listed(bundle: Path) -> None:
    edit_document(bundle / c.MANIFEST, lambda m: m["files"].pop("segments/all.weights"))
    accept_manifest(bundle)
    (bundle / "segments/all.weights").unlink()
    refuse(bundle, "lies in segments/all.weights, which is not among the manifest's files")


def test_a_graph_that_is_not_listed(bundle: Path) -> None:
    edit_document(bundle / c.MANIFEST, lambda m: m["graphs"]["head"].update(path="../head.onnx"))
    accept_manifest(bundle)
    refuse(bundle, "the graph ../head.onnx is not among the manifest's files")


def test_other_graphs_are_checked_too(bundle: Path) -> None:
    (bundle / "segments/head.onnx").rename(bundle / "reference.onnx")
    (bundle / "segments/head.onnx").write_bytes((bundle / "reference.onnx").read_bytes())
    edit_document(bundle / c.MANIFEST, lambda m: m["files"].update({"reference.onnx": None}))
    accept_core(bundle)
    refuse(bundle, "reference.onnx: its tensor 'w' lies in all.weights, which is not among")


@pytest.mark.parametrize("data", [b"\x3a\xff", b"\x3a\x02\x0a", b"not a graph", b"\x0b" * 300])
def test_garbage(bundle: Path, data: bytes) -> None:
    (bundle / SEGMENT).write_bytes(data)
    accept_core(bundle)
    refuse(bundle, "segment_0.onnx: not an ONNX model")


def test_a_name_that_is_not_text(bundle: Path) -> None:
    data = (bundle / SEGMENT).read_bytes()
    (bundle / SEGMENT).write_bytes(data.replace(b"hidden", b"\xff\xfe\xff\xfe\xff\xfe"))
    accept_core(bundle)
    refuse(bundle, "segment_0.onnx: (not an ONNX model|its inputs are)")


def test_graphs_have_a_limit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "MAX_GRAPH_BYTES", 10)
    refuse(bundle, "more than the 10 a reader accepts")


def test_an_interface_that_is_not_the_models(bundle: Path) -> None:
    edit_document(bundle / c.MANIFEST, lambda m: m["model"].update(hidden=8))
    accept_manifest(bundle)
    refuse(bundle, "which is not the model's size")


def test_caches_that_are_not_the_models(bundle: Path) -> None:
    cache = {"name": "key_cache_0", "dtype": "float32", "shape": ["B", 1, 80, 2]}
    edit_document(bundle / c.MANIFEST, lambda m: m["graphs"]["segments"][0]["inputs"].append(cache))
    accept_manifest(bundle)
    refuse(bundle, "its inputs are")  # the sizes are right, but the graph has no such input
    edit_document(bundle / c.MANIFEST, lambda m: m.update(slack=63))
    accept_manifest(bundle)
    refuse(bundle, "key_cache_0 is .* which is not the model's size")


def test_every_dtype_of_the_contract_has_a_size() -> None:
    assert set(graphs._BIT_SIZES) >= {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT4}


@given(st.lists(st.integers(0, 5), max_size=4))
def test_four_bit_tensors_are_packed(dims: list[int]) -> None:
    values = 1
    for dim in dims:
        values *= dim
    assert tensor_bytes(dims, TensorProto.INT4) == -(-values // 2)
    assert tensor_bytes(dims, TensorProto.FLOAT) == 4 * values


def test_the_reference_graph_is_described(bundle: Path) -> None:
    def describe(manifest: Any) -> None:
        manifest["graphs"]["reference"] = {**manifest["graphs"]["embed"], "path": "segments/head.onnx"}

    edit_document(bundle / c.MANIFEST, describe)
    accept_manifest(bundle)
    refuse(bundle, r"head.onnx: its input hidden is float32 \['N', 4\]; the manifest says float32 \['B', 'R', 4\]")
