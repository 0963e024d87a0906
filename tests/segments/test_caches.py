"""Caches of smaller types: what is read back is what numpy would round to, where it should be, and faults show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile import contract as c
from eecompile.errors import NumericError, UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.caches import Caches
from eecompile.runtime.trace import Tracer
from eecompile.segments.caches import write_cache
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook

SIZES = (2, 6)
ROWS, LENGTH = 3, 8
IDS = np.random.default_rng(4).integers(0, tiny.VOCAB, 60).tolist()


def scattered(folder: Path, type_: str, update: Any, at: int) -> tuple[Any, dict[str, Any]]:
    """What `write_cache` returns for an empty cache, and the cache tensors afterwards."""
    book = WeightBook(folder)
    g = GraphWriter("cache", book)
    g.input("update", "float32", "B", SIZES[0], "R", SIZES[1])
    g.input(c.WRITE_INDEX, "int64", "B")
    g.output(write_cache(g, type_, "key", "update", 0, SIZES), "read", "float32", "B", SIZES[0], "T", SIZES[1])
    info = g.save(folder / "cache.onnx")
    caches = Caches([info])
    caches.resize(LENGTH)
    empty = {t.name: np.zeros_like(caches.tensors[0][t.name][:, :, :LENGTH]) for t in info.inputs if "T" in t.shape}
    session = tiny.ort_session(folder / "cache.onnx")
    outputs = session.run(None, {"update": update, c.WRITE_INDEX: np.array([at]), **empty})
    named = dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))
    return named.pop("read"), named


@pytest.mark.parametrize("type_", c.CACHES)
def test_a_row_is_rounded_once_and_lands_where_it_should(tmp_path: Path, type_: str) -> None:
    update = np.random.default_rng(3).standard_normal((1, SIZES[0], ROWS, SIZES[1])).astype(np.float32)
    update[0, 1, 2] = 0
    update[0, 0, 1] *= 1000
    read, tensors = scattered(tmp_path, type_, update, 4)
    expected = update
    if type_ == "fp16":
        expected = update.astype(np.float16).astype(np.float32)
    if type_ == "int8":
        scale = np.abs(update).max(axis=3, keepdims=True) / np.float32(127)
        expected = np.rint(update / np.maximum(scale, np.float32(1e-30))) * scale
        assert np.abs(expected - update).max() <= scale.max() / 2 * 1.0001
    np.testing.assert_array_equal(read[:, :, 4 : 4 + ROWS], expected)
    assert not read[:, :, :4].any()
    assert not read[:, :, 4 + ROWS :].any()
    dtype = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[type_]
    assert tensors["key_cache_0_out"].dtype == dtype
    assert set(tensors) == {"key_cache_0_out", *(["key_scale_0_out"] if type_ == "int8" else [])}


@pytest.mark.parametrize("type_", c.CACHES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(tmp_path: Path, type_: str, value: float) -> None:
    update = np.ones((1, SIZES[0], ROWS, SIZES[1]), np.float32)
    update[0, 1, 1, 3] = value
    read, _ = scattered(tmp_path, type_, update, 0)
    assert not np.isfinite(read[0, 1, 1]).all()
    assert np.isfinite(read[0, 0]).all()
    assert np.isfinite(read[0, 1, [0, 2]]).all()


@pytest.mark.parametrize(("type_", "worst"), [("fp16", 0.02), ("int8", 0.15)])
def test_a_model_stays_close(shelf: Any, type_: str, worst: float) -> None:
    """A smaller cache changes a model's probabilities a little, and not at all nothing."""
    found = [Tracer(shelf.bundle(build={"cache": cache})).trace(IDS).final for cache in ("fp32", type_)]
    difference = np.abs(found[0].max_prob - found[1].max_prob)
    assert 0 < difference.max() < worst
    assert (found[0].token == found[1].token).mean() > 0.9


@pytest.mark.parametrize(("type_", "bytes_"), [("fp32", 4.0), ("fp16", 2.0), ("int8", 1.5)])
def test_a_smaller_cache_takes_less(shelf: Any, type_: str, bytes_: float) -> None:
    """int8: heads of 8 values with a float32 scale each."""
    opened = shelf.bundle(build={"cache": type_})
    caches = Caches(opened.manifest.graphs.segments)
    caches.resize(64)
    tensors = [t for tensors in caches.tensors for name, t in tensors.items() if not name.endswith("_out")]
    assert sum(t.nbytes for t in tensors) == 2 * 4 * 2 * 64 * 8 * bytes_


def test_the_type_is_in_the_manifest_and_in_calibrations(shelf: Any, tmp_path: Path) -> None:
    path = tiny.bundle_at(tmp_path / "b", shelf.checkpoint(), [2], cache="int8")
    assert Bundle.open(path).manifest.cache == "int8"
    with pytest.raises(UsageError, match="without a calibration"):
        tiny.calibrate(path, [{"max_prob": 0.5}], cache="fp32")
    with pytest.raises(UsageError, match="types: fp32, fp16, int8"):
        tiny.bundle_at(tmp_path / "c", shelf.checkpoint(), [2], cache="int4")


def test_numbers_too_large_for_float16_are_a_numeric_error(tmp_path: Path) -> None:
    settings = tiny.config(num_hidden_layers=1)
    tensors = tiny.weights(settings)
    tensors["model.layers.0.self_attn.v_proj.weight"] *= 1e6
    source = tiny.checkpoint(tmp_path / "checkpoint", settings, tensors)
    opened = tiny.open_bundle(tmp_path / "bundle", source, cache="fp16")
    with pytest.raises(NumericError):
        tiny.tokens(opened, [1, 2, 3], 2)
