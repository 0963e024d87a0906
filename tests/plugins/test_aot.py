"""The plugin that engines carry: what it tells tensorrt.plugin (a double), its PTX, and graphs that ask for it."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from plugin_double import DataType, Tensorrt
from toolchain import SOURCES, compiler

from eecompile import contract as c
from eecompile.errors import EECompileError, MissingBackend
from eecompile.plugins.exit_decision import aot
from eecompile.segments.decision import exit_decision
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook

OUTPUTS = [DataType.INT64, DataType.FLOAT, DataType.FLOAT, DataType.FLOAT, DataType.INT32]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Tensorrt:
    module = Tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module.plugin)
    return module


@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [
        (DataType.FLOAT, "exit_decision_fp32"),
        (DataType.HALF, "exit_decision_fp16"),
        (DataType.BF16, "exit_decision_bf16"),
    ],
)
@pytest.mark.parametrize(
    ("rows", "vocab", "tiles"), [(1, 1, 1), (7, 49152, 12), (256, 4097, 2), (1, c.MAX_VOCAB, 1024)]
)
def test_what_an_engine_keeps(trt: Tensorrt, dtype: DataType, kernel: str, rows: int, vocab: int, tiles: int) -> None:
    aot.register_aot(trt, lambda: b"ptx")
    built = trt.kernel_for(aot.PLUGIN_ID, [dtype, DataType.FLOAT], [[rows, vocab], [rows, 3]])
    assert (built.name, built.ptx, built.scalars, built.outputs) == (kernel, b"ptx", [vocab], OUTPUTS)
    launch = {"grid_x": rows, "block_x": 256, "block_y": 4, "shared_mem": 24 * tiles}
    assert built.launch == {"grid_y": 1, "grid_z": 1, "block_z": 1, **launch}
    assert launch["shared_mem"] + 4 * 8 * 24 <= 48 << 10  # what a kernel has without asking for more


def test_other_types_and_ranks_are_refused(trt: Tensorrt) -> None:
    aot.register_aot(trt, lambda: b"ptx")
    for types in ([DataType.INT32, DataType.FLOAT], [DataType.FLOAT, DataType.HALF]):
        with pytest.raises(AssertionError, match="no format"):
            trt.kernel_for(aot.PLUGIN_ID, types, [[2, 5], [2, 3]])
    with pytest.raises(ValueError, match=r"\[N, V\]"):
        trt.kernel_for(aot.PLUGIN_ID, [DataType.FLOAT] * 2, [[5], [1, 3]])


def test_registered_once_and_compiled_once(trt: Tensorrt) -> None:
    compiled: list[int] = []

    def compile() -> bytes:
        compiled.append(1)
        return b"ptx"

    aot.register_aot(trt, compile)
    aot.register_aot(trt, compile)
    assert list(trt.registry.known) == [(c.DECISION_OP, c.DECISION_VERSION, c.DECISION_DOMAIN)]
    assert not compiled
    for dtype in (DataType.HALF, DataType.FLOAT):
        trt.kernel_for(aot.PLUGIN_ID, [dtype, DataType.FLOAT], [[2, 5], [2, 3]])
    assert len(compiled) == 1


def test_older_tensorrt_is_refused() -> None:
    with pytest.raises(MissingBackend, match=r"10\.3\.0 has no plugins with ahead-of-time") as caught:
        aot.register_aot(Tensorrt("10.3.0", aot=False))
    assert caught.value.exit_status == 3


def test_the_constants_are_the_sources() -> None:
    text = "".join((SOURCES / name).read_text() for name in ("tile.cuh", "aot.cu", "reduction.h"))
    values = {name: int(value) for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", text)}
    assert (values["kTile"], values["kThreads"], values["kTilesAtOnce"]) == (aot.TILE, aot.THREADS, aot.TILES_AT_ONCE)


def test_the_ptx_has_each_kernel_with_eight_parameters() -> None:
    """Two inputs, a 32-bit scalar, five outputs, in the order that TensorRT passes them."""
    text = aot.compile_ptx(compiler("nvcc")).decode()
    assert f".target sm_{aot.PTX_TARGET.removeprefix('compute_')}" in text
    kernels = dict(re.findall(r"\.visible \.entry (\w+)\((.*?)\)", text, re.DOTALL))
    assert set(kernels) == {"exit_decision_fp32", "exit_decision_fp16", "exit_decision_bf16"}
    for parameters in kernels.values():
        assert re.findall(r"\.param \.(\w+)", parameters) == ["u64", "u64", "u32", *["u64"] * 5]


def test_faults_of_the_compiler_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingBackend, match="cannot be run"):
        aot.compile_ptx(str(tmp_path / "nowhere"))
    monkeypatch.setattr(aot, "SOURCE", tmp_path / "none.cu")
    with pytest.raises(EECompileError, match=r"nvcc fails: .*none\.cu"):
        aot.compile_ptx(compiler("nvcc"))


def test_graphs_that_ask_for_it_run_as_before(tmp_path: Path) -> None:
    g = GraphWriter("decision", WeightBook(tmp_path))
    outputs = exit_decision(g, g.input(c.LOGITS, "float32", "N", "V"), g.input(c.THRESHOLDS, "float32", "N", 3))
    for value, dtype in zip(outputs, ("int64", "float32", "float32", "float32", "bool"), strict=True):
        g.output(value, value, dtype, "N")  # type: ignore[arg-type]
    g.save(tmp_path / "decision.onnx")
    model = onnx.load(tmp_path / "decision.onnx")
    for _ in range(2):
        assert aot.ask_for_aot(model) == 1
    (node,) = (n for n in model.graph.node if n.op_type == c.DECISION_OP)
    said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert said == {"plugin_version": b"1", "plugin_namespace": b"eecompile", "aot": 1}
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "aot.onnx")
    rng = np.random.default_rng(0)
    inputs = {c.LOGITS: rng.standard_normal((5, 99)), c.THRESHOLDS: rng.uniform(size=(5, 3))}
    answers = [run(tmp_path / name, inputs) for name in ("decision.onnx", "aot.onnx")]
    for before, after in zip(*answers, strict=True):
        np.testing.assert_array_equal(before, after)


def run(path: Path, inputs: dict[str, Any]) -> list[Any]:
    values: list[Any] = tiny.ort_session(path).run(None, {n: v.astype(np.float32) for n, v in inputs.items()})
    return values
