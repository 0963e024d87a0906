"""Reading safetensors: every dtype and shard, in chunks, and a clear refusal of everything that is not whole."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from eecompile.errors import UsageError
from eecompile.student import store as module
from eecompile.student.store import View, WeightStore, read_header
from eecompile.student.student import open_student

RNG = np.random.default_rng(7)
TENSORS = {
    "matrix": RNG.standard_normal((37, 5)).astype(np.float32),
    "vector": RNG.standard_normal(11).astype(np.float32),
    "deep": RNG.standard_normal((3, 2, 4)).astype(np.float32),
}


@pytest.mark.parametrize("dtype", tiny.DTYPES)
def test_every_dtype_reads_as_its_exact_float32(tmp_path: Path, dtype: str) -> None:
    tiny.write_safetensors(tmp_path / "model.safetensors", TENSORS, dtype)
    store = WeightStore.open(tmp_path)
    for name, tensor in TENSORS.items():
        found = store.read(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensor.astype(tiny.DTYPES[dtype][1]).astype(np.float32))


def test_reads_what_safetensors_itself_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    half = {name: t.astype(ml_dtypes.bfloat16) for name, t in TENSORS.items()}
    save_file({**half, "double": np.arange(6.0).reshape(2, 3)}, tmp_path / "model.safetensors")
    store = WeightStore.open(tmp_path)
    np.testing.assert_array_equal(store.read("double"), np.arange(6).reshape(2, 3))
    for name, tensor in half.items():
        np.testing.assert_array_equal(store.read(name), tensor.astype(np.float32))


@pytest.mark.parametrize("size", [1, 20, 60, 100, 1 << 20])
def test_chunks_cover_a_tensor_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", size)
    tiny.write_safetensors(tmp_path / "model.safetensors", TENSORS)
    store = WeightStore.open(tmp_path)
    for name, tensor in TENSORS.items():
        chunks = list(store.chunks(name))
        assert [start for start, _ in chunks] == np.cumsum([0, *(len(rows) for _, rows in chunks[:-1])]).tolist()
        assert all(rows.nbytes <= max(size, tensor[:1].nbytes) for _, rows in chunks)
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in chunks]), tensor)


VIEWS = {
    "rows": View("matrix", (37, 5), (range(30, 37), range(4, 5))),
    "columns": View("matrix", (37, 5), (range(3, 5), range(1)), transposed=True),
    "part": View("vector", (11,), (range(2, 9), range(10, 11)), add=1.0),
}
PARTS = {
    "rows": TENSORS["matrix"][[*range(30, 37), 4]],
    "columns": TENSORS["matrix"][:, [3, 4, 0]].T,
    "part": TENSORS["vector"][[*range(2, 9), 10]] + 1,
}


@pytest.mark.parametrize("dtype", tiny.DTYPES)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_views_are_parts_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, dtype: str) -> None:
    """Also of a transposed one, and read as little at a time as whole tensors are."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", size)
    tiny.write_safetensors(tmp_path / "model.safetensors", TENSORS, dtype)
    store = WeightStore.open(tmp_path).with_views(VIEWS)
    kind = tiny.DTYPES[dtype][1]
    for name, part in PARTS.items():
        add = np.float32(VIEWS[name].add)
        expected = (part - add).astype(kind).astype(np.float32) + add
        assert store.shape(name) == VIEWS[name].weight_shape == expected.shape
        np.testing.assert_array_equal(store.read(name), expected)
        chunks = list(store.chunks(name))
        assert [start for start, _ in chunks] == np.cumsum([0, *(len(rows) for _, rows in chunks[:-1])]).tolist()
        assert all(rows.nbytes <= max(4 / np.dtype(kind).itemsize * size, expected[:1].nbytes) for _, rows in chunks)
    np.testing.assert_array_equal(store.read("deep"), TENSORS["deep"].astype(kind).astype(np.float32))


def test_a_prefix_is_for_checkpoints_that_lack_it(tmp_path: Path) -> None:
    tiny.write_safetensors(tmp_path / "model.safetensors", TENSORS)
    store = WeightStore.open(tmp_path)
    assert store.with_prefix("model.", "matrix") is store
    assert store.with_prefix("model.", "model.other") is store
    found = store.with_prefix("model.", "model.matrix")
    np.testing.assert_array_equal(found.read("model.vector"), TENSORS["vector"])
    np.testing.assert_array_equal(found.read("vector"), TENSORS["vector"])


def shards(folder: Path) -> dict[str, Any]:
    """TENSORS over two files, with the index; returns the index."""
    tiny.write_safetensors(folder / "a.safetensors", {"matrix": TENSORS["matrix"]})
    tiny.write_safetensors(folder / "b.safetensors", {n: TENSORS[n] for n in ("vector", "deep")})
    index = {"weight_map": {"matrix": "a.safetensors", "vector": "b.safetensors", "deep": "b.safetensors"}}
    (folder / module.INDEX).write_text(json.dumps(index))
    return index


def test_shards_read_as_one(tmp_path: Path) -> None:
    shards(tmp_path)
    store = WeightStore.open(tmp_path)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(store.read(name), tensor)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"b\.safetensors.*missing(.|\n)*download every shard"):
        WeightStore.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "x", "b": 1}}',
     '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": ""}}',
     '{"weight_map": {"a": "/etc/passwd"}}', "\xff", "[" * 100_000],
)  # fmt: skip
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    shards(tmp_path)
    (tmp_path / module.INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="index") as caught:
        WeightStore.open(tmp_path)
    assert module.INDEX in caught.value.where


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="safe_serialization=True"):
        WeightStore.open(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        WeightStore.open(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    settings = tiny.config()
    tensors = tiny.weights(settings)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tiny.checkpoint(tmp_path, settings, tensors)
    with pytest.raises(UsageError, match=r"lacks model\.layers\.2\.mlp\.up_proj\.weight"):
        open_student(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    settings = tiny.config()
    tiny.checkpoint(tmp_path, settings, {"model.norm.weight": tiny.weights(settings)["model.norm.weight"]})
    with pytest.raises(UsageError, match="and 35 more"):
        open_student(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    settings = tiny.config()
    tensors = tiny.weights(settings)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].T.copy()
    tiny.checkpoint(tmp_path, settings, tensors)
    with pytest.raises(UsageError, match=r"k_proj\.weight has shape \[32, 16\], config\.json asks for \[16, 32\]"):
        open_student(tmp_path)


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "BOOL", "nonsense"])
def test_a_dtype_that_is_no_weight_is_named(tmp_path: Path, dtype: str) -> None:
    path = tiny.checkpoint(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(UsageError, match=rf"model\.norm\.weight has dtype {dtype}(.|\n)*F32, F16, BF16"):
        open_student(tmp_path)


@given(share=st.floats(0, 0.9999))
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, share: float) -> None:
    tiny.write_safetensors(tmp_path / "whole.safetensors", TENSORS)
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UsageError, match=r"model\.safetensors(.|\n)*download"):
        WeightStore.open(tmp_path)


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tiny.write_safetensors(path, TENSORS)
    store = WeightStore.open(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match="deep is cut short"):
        store.read("deep")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "X"]) | JSON,
        "shape": st.lists(st.integers(-2, 2**65), max_size=3) | JSON,
    },
    optional={"data_offsets": st.lists(st.integers(-9, 2**65), max_size=3) | JSON},
)


@example(header={"a": {"dtype": "F32", "shape": [2**65], "data_offsets": [0, 64]}})
@example(header={"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}})
@given(header=JSON | st.dictionaries(st.text(max_size=3), JSON | ENTRY, max_size=3))
def test_any_header_is_read_or_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    try:
        for location in read_header(path).values():
            assert 0 <= location.offset <= location.offset + location.bytes <= path.stat().st_size
            if location.dtype in module.DTYPES:
                assert math.prod(location.shape) * np.dtype(module.DTYPES[location.dtype]).itemsize == location.bytes
    except UsageError:
        return


@example(data=(1 << 16).to_bytes(8, "little") + b"[" * (1 << 16))
@given(data=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        assert read_header(path) == {}
    except UsageError:
        return
