"""Real engines: TensorRT-RTX builds a bundle's device graphs for four GPU architectures on a machine that has none."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import tiny
from commands import cli, cli_json
from real_inputs import real_input

from eecompile.engines.jobs import EngineJob
from eecompile.engines.plan import BuildPlan, read_plan
from eecompile.engines.processes import run_in_process
from eecompile.engines.records import Machine, check, checked_engine, engines_folder, read_record
from eecompile.errors import EECompileError
from eecompile.target import FOLDER

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'eecompile[rtx]'")
pytestmark = pytest.mark.rtx
SMS = [80, 86, 89, 120]
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # no kernel for 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle for TensorRT-RTX, as the command line builds it: engines included."""
    root = tmp_path_factory.mktemp("rtx")
    source = tiny.add_tokenizer(tiny.checkpoint(root / "checkpoint", tiny.config(vocab_size=288, **SIZES)))
    said = cli_json("build", source, "--target", "rtx", "--exits", "2", "--context", "64", "-o", root / "bundle")
    assert said["engines"] == ["embed", "segment_0", "segment_1", "exit_0", "head"]
    return root / "bundle"


def plan_of(bundle: Path) -> BuildPlan:
    return read_plan(bundle / json.loads((bundle / "manifest.json").read_text())["device"]["plan"])


def test_a_build_makes_engines_for_four_architectures(bundle: Path) -> None:
    folder, plan = engines_folder(bundle, "rtx"), plan_of(bundle)
    record, core = read_record(folder), json.loads((bundle / "manifest.json").read_text())["digest"]
    assert (record.sm, record.backend, record.plugin) == (SMS, "tensorrt_rtx", None)
    for sm in SMS:
        machine = Machine(sm, record.tensorrt, None)
        check(record, machine, core, {graph.name: graph.sha256 for graph in plan.graphs}, where=folder)
    for name in ("segment_0", "segment_1"):
        layers = record.engines[name].layers
        fused = [layers[kind] for kind in ("ATTENTION_INPUT", "ROTARY_EMBEDDING", "KV_CACHE_UPDATE")]
        assert fused == [2, 2, 4], "of two decoder layers"
    assert record.engines["head"].layers["TOPK"] == 1, "the exit decision's function is inlined"
    assert all(checked_engine(folder, record, name).stat().st_size > 10_000 for name in record.engines)
    assert [p.name for p in plan.graph("segment_0").profiles] == record.engines["segment_0"].profiles


def test_the_command_goes_on_where_it_was_interrupted(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (engines_folder(copy, "rtx") / "head.plan").write_bytes(b"half of it")
    assert cli_json("engines", copy)["built"] == ["head"]
    said = cli("engines", copy).stdout
    assert "0 built, 5 kept" in said
    assert "SM 80, 86, 89, 120" in said
    assert cli_json("check", copy)["intact"]


def test_what_was_built_is_shown(bundle: Path) -> None:
    assert "attention 2, cache update 4, rotary 2" in cli("inspect", bundle).stdout
    [record] = cli_json("inspect", bundle)["engines"]
    assert record["sm"] == SMS
    from eecompile.bench.report import render_report
    from eecompile.bundle.read import read_bundle

    page = render_report(read_bundle(bundle), None)
    assert "tensorrt_rtx" in page
    assert "attention 2, cache update 4, rotary 2" in page


def test_a_stripped_plan_is_not_for_it(bundle: Path) -> None:
    assert "neither stripped nor refittable" in cli("engines", bundle, "--strip", status=2).stderr


def test_int4_weights_stay_int4(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint", tiny.config(**SIZES))
    options = ("--target", "rtx", "--precision", "int4", "--context", "64", "-o", tmp_path / "bundle")
    cli("build", source, *options)
    layers = read_record(engines_folder(tmp_path / "bundle", "rtx")).engines["segment_0"].layers
    assert layers["DEQUANTIZE"] == 4 * 4, "query-key-value, output, gate-up and down of four layers"


@pytest.mark.parametrize(("precision", "sms"), [("w8a8", SMS), ("fp8", [89, 120])])
def test_products_of_8_bits(tmp_path: Path, precision: str, sms: list[int]) -> None:
    """Floats from Ada on, integers everywhere: every product of the layers has quantised rows and weights."""
    source = tiny.checkpoint(tmp_path / "checkpoint", tiny.config(**{**SIZES, "num_hidden_layers": 2}))
    (tmp_path / "ids.jsonl").write_text(
        '{"ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}\n{"ids": [9, 8, 7, 6, 5, 4, 3, 2, 1]}\n'
    )
    text = (FOLDER / "rtx.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("name", "sm ", "precisions"))]
    named = [f'name = "mine"\nsm = {sms}\nprecisions = ["fp16", "{precision}"]', *lines]
    (tmp_path / "mine.toml").write_text("\n".join(named))
    options = ("--target", tmp_path / "mine.toml", "--precision", precision, "--texts", tmp_path / "ids.jsonl")
    cli("build", source, *options, "--context", "64", "-o", tmp_path / "bundle")
    record = read_record(engines_folder(tmp_path / "bundle", "mine"))
    layers = record.engines["segment_0"].layers
    assert (layers["QUANTIZE"], layers["DEQUANTIZE"], layers["MATRIX_MULTIPLY"]) == (8, 16, 8)
    assert record.sm == sms


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 1}, {"head_dim": 8}], ids=["one key head", "heads of 8"])
def test_attention_without_a_kernel_of_its_own_is_taken_apart(tmp_path: Path, changes: dict[str, int]) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint", tiny.config(**{**SIZES, "num_hidden_layers": 1, **changes}))
    said = cli_json("build", source, "--target", "rtx", "--context", "64", "-o", tmp_path / "bundle")
    assert said["engines"] == ["embed", "segment_0", "head"]


def test_what_the_parser_refuses_is_said_by_node(bundle: Path, tmp_path: Path) -> None:
    """A cache without a fixed length, which its KV-cache update does not take."""
    folder = shutil.copytree(bundle / "segments", tmp_path / "segments")
    graph = plan_of(bundle).graph("segment_0")
    path = folder / Path(graph.path).name
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if "_cache_" in value.name:
            value.type.tensor_type.shape.dim[2].dim_param = "T"
    onnx.save(model, path)
    job = EngineJob(
        module="tensorrt_rtx", graph=graph.name, onnx=str(path), out=str(tmp_path / "out.plan"),
        profiles=graph.profiles, sm=[89],
    )  # fmt: skip
    with open(path, "rb") as lock, pytest.raises(EECompileError, match=r"segment_0: .*TensorScatter.*static sequence"):
        run_in_process(job, lambda stage: None, lock.fileno())
    assert not (tmp_path / "out.plan").exists()


@pytest.mark.real
@pytest.mark.parametrize(("precision", "most"), [("fp16", 420e6), ("int4", 220e6)])
def test_the_real_model_in_segments_exits_and_head(tmp_path: Path, precision: str, most: float) -> None:
    source = real_input("smollm2")
    options = ("--target", "rtx", "--precision", precision, "--exits", "10,20", "-o", tmp_path / "bundle")
    cli("build", source, *options)
    record = read_record(engines_folder(tmp_path / "bundle", "rtx"))
    segments = [engine for name, engine in record.engines.items() if name.startswith("segment_")]
    assert [e.layers["ATTENTION_INPUT"] for e in segments] == [10, 10, 10]
    assert [e.layers["KV_CACHE_UPDATE"] for e in segments] == [20, 20, 20]
    assert [e.layers.get("DEQUANTIZE", 0) for e in segments] == [40 * (precision == "int4")] * 3
    assert {"exit_0", "exit_1", "head", "embed"} <= record.engines.keys()
    assert sum(e.bytes for e in record.engines.values()) < most
    assert max(e.peak for e in record.engines.values()) < 1.2e9
