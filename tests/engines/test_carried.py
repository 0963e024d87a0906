"""Engines that carry the exit decision's kernel: what the parser and the builder are given, and what is refused."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import tiny
from commands import cli, cli_json
from planned import CORE, Source, engine, inside, orin, plan_of

from eecompile.engines.build import CARRIED, EngineRequest, build_engines
from eecompile.engines.machine import Gpu
from eecompile.engines.records import Machine, check, engines_folder
from eecompile.engines.tensorrt import tensorrt_builder
from eecompile.errors import EECompileError, MissingBackend, UsageError
from eecompile.plugins.exit_decision.aot import compile_ptx

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
from plugin_double import Tensorrt

AOT = EngineRequest(aot=True)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT with plugins in Python, which registers by `tensorrt.plugin`."""
    return carrying(monkeypatch)


def carrying(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    python = Tensorrt("10.16.2")
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", python.plugin)
    return fake_tensorrt.make(python=python, **options)


def ptx() -> bytes:
    return b"the kernel"


def test_engines_that_decide_carry_the_kernel(source: Source, bundle: Path, trt: Any) -> None:
    """No library is loaded, and none has to be there where they run."""
    plan = plan_of(*source).model_copy(update={"plugin": "required"})
    record = build_engines(bundle, CORE, plan, orin(plan, trt, aot=True), AOT, run=inside(trt, ptx)).record
    assert record.engines["head"].layers["PLUGIN_V3"] == 1
    assert (record.plugin, record.options.flags) == (None, ["STRONGLY_TYPED", CARRIED])
    assert engine(bundle, "head")["ptx"] == "the kernel"
    assert engine(bundle, "head")["plugins"] == []
    assert engine(bundle, "head")["weights"] > 0, "they lie beside the graph, which was parsed from memory"
    assert engine(bundle, "embed")["ptx"] is None
    assert ("parse", "head.onnx") not in trt.calls
    assert ("parse", "embed.onnx") in trt.calls
    graphs = {graph.name: graph.sha256 for graph in plan.graphs}
    check(record, Machine(87, "10.16.2", "12.6"), CORE, graphs, where=engines_folder(bundle, "jetson-orin"))
    again = partial(build_engines, bundle, CORE, plan, run=inside(trt, ptx))
    assert again(orin(plan, trt, aot=True), AOT).built == ()
    plain = plan_of(*source)
    assert "head" in build_engines(bundle, CORE, plain, orin(plain, trt), EngineRequest(), run=inside(trt)).built


def test_a_parser_that_takes_the_function_all_the_same_is_found_out(
    source: Source, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trt = plan_of(*source), carrying(monkeypatch, prefers_function=True)
    with pytest.raises(EECompileError, match=r"head: .*no PLUGIN_V3 layer(.|\n)*mend: leave --aot out"):
        build_engines(bundle, CORE, plan, orin(plan, trt, aot=True), AOT, run=inside(trt, ptx))


def test_an_older_tensorrt_is_refused_before_anything_is_built(source: Source) -> None:
    plan = plan_of(*source)
    with pytest.raises(UsageError, match=r"carry the exit decision: TensorRT 10\.8\.0 is older than 10\.9"):
        orin(plan, fake_tensorrt.make("10.8.0"), aot=True)
    assert orin(plan, fake_tensorrt.make("10.9.0"), aot=True).plugin is None


def test_the_command(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own command over doubles; options that exclude each other, and a target without plugins."""
    out = tmp_path / "b"
    options = ("--target", "jetson-orin", "--exits", "2", "--context", "64", "--no-profile")
    cli("build", tiny.checkpoint(tmp_path / "checkpoint"), *options, "-o", out)
    builder = partial(tensorrt_builder, gpu=lambda: Gpu("Orin", 87, "13.2"), load=lambda name: trt)
    monkeypatch.setattr("eecompile.engines.builders.tensorrt_builder", builder)
    monkeypatch.setattr("eecompile.pipeline_engines.build_engines", partial(build_engines, run=inside(trt, ptx)))
    said = cli_json("engines", out, "--aot")
    assert said["record"]["options"]["flags"] == ["STRONGLY_TYPED", CARRIED]
    assert "head" in said["built"]
    assert "leave out --plugin or --aot" in cli("engines", out, "--aot", "--plugin", "x", status=2).stderr
    for option in (["--aot"], ["--plugin", "x"]):
        told = cli("engines", out, "--target", "rtx", *option, status=2).stderr
        assert f"{option[0]}: TensorRT-RTX has no plugins, and builds rtx's engines" in told


def test_without_a_compiler_it_says_so(source: Source, bundle: Path, trt: Any, tmp_path: Path) -> None:
    plan, missing = plan_of(*source), partial(compile_ptx, str(tmp_path / "nvcc"))
    with pytest.raises(MissingBackend, match="cannot be run"):
        build_engines(bundle, CORE, plan, orin(plan, trt, aot=True), AOT, run=inside(trt, missing))
