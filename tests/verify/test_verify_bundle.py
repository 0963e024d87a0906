"""`verify_bundle`: intact bundles pass whatever is installed, and each fault is found by the check that names it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from broken import edit_graph, edit_recorded, edit_weight, failed, named, reseal
from polygraphy_command import polygraphy

from eecompile.errors import ContextFull, IntegrityError, UsageError
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.staircase import Staircase
from eecompile.student.exits import load_exits
from eecompile.verify import VerifyReport, verify_bundle

PRECISIONS = ("fp32", "fp16", "int8", "int4")
TOKENS = 10
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def passing(pristine: Path, source: Path) -> VerifyReport:
    """The report of the intact bundle with its checkpoint."""
    return verify_bundle(pristine, checkpoint=source, tokens=TOKENS)


# -- what passes -----------------------------------------------------------------------------------------------


def test_an_intact_bundle_passes(passing: VerifyReport) -> None:
    assert not failed(passing)
    assert passing.passed
    names = [check.name for check in passing.checks]
    assert len(names) == len(set(names))
    wanted = {"hashes", "passes", "checkpoint", "weights", "decision_node", "exit_1", "exit_3"}
    boundaries = ("hidden_1", "hidden_3", "finished", "logits", "decisions exit_1", "decisions exit_3")
    assert wanted | {f"checkpoint {name}" for name in boundaries} <= set(names)
    assert {f"recorded {name}" for name in boundaries[:4]} <= set(names)


def test_drafts_really_were_made_and_refused(passing: VerifyReport) -> None:
    exact = [check for check in passing.checks if check.name.startswith("exact")]
    assert len(exact) == 5
    for check in exact:
        assert check.figures["mismatches"] == 0
        assert check.figures["tokens"] == 2 * TOKENS
        assert check.figures["drafted"] > check.figures["rejected"] > 0


def test_long_prompts_take_more_than_one_prefill_pass(passing: VerifyReport) -> None:
    assert named(passing, "passes").figures["rows"] > 128
    assert named(passing, "passes").figures["largest"] == 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "variant", ["llama-tied", "llama-biases", "qwen3-window", "gpt2", "gpt_neox-in-turn", "gemma2", "phi"]
)
@pytest.mark.usefixtures("no_torch")
def test_families_in_every_precision(variant: str, precision: str, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "model", tiny.variants()[variant])
    out = tiny.bundle_at(tmp_path / "bundle", source, [2], precision=precision)
    report = verify_bundle(out, checkpoint=source, tokens=6)
    assert not failed(report)
    assert named(report, "weights").figures["different"] == 0
    assert any(check.name.startswith("own weights") for check in report.checks) == (precision != "fp32")


@pytest.mark.torch
@pytest.mark.parametrize("precision", PRECISIONS)
def test_hugging_face_is_the_reference_where_it_is_installed(precision: str, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = verify_bundle(tiny.bundle_at(tmp_path / "b", source, precision=precision), checkpoint=source, tokens=4)
    assert not failed(report)
    assert report.references[1].startswith("hugging face float32")


@pytest.mark.usefixtures("no_torch")
def test_without_torch_the_numpy_model_reads_the_checkpoint(pristine: Path, source: Path) -> None:
    report = verify_bundle(pristine, checkpoint=source, tokens=4)
    assert not failed(report)
    assert report.references[1] == "numpy float32 on the checkpoint (torch is not installed)"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("no_torch")
def test_without_a_checkpoint_the_recorded_rows_are_the_reference(precision: str, source: Path, tmp_path: Path) -> None:
    report = verify_bundle(tiny.bundle_at(tmp_path / "b", source, precision=precision), tokens=4)
    assert not failed(report)
    assert report.references == ("numpy float32 recorded at build",)
    assert not any(check.name.startswith(("checkpoint", "weights")) for check in report.checks)
    judged = named(report, "recorded decisions exit_3").tolerance
    assert bool(judged) == (precision != "int4")


@pytest.mark.usefixtures("no_polygraphy")
def test_without_polygraphy_numpy_compares(pristine: Path, passing: VerifyReport) -> None:
    report = verify_bundle(pristine, tokens=4)
    assert not failed(report)
    assert report.comparator == "numpy (polygraphy is not installed)"
    assert report.commands == ()
    there = named(passing, "recorded hidden_3").figures  # by Polygraphy where it is installed
    here = named(report, "recorded hidden_3").figures
    assert here == pytest.approx(there, rel=1e-3)


def test_a_bundle_without_exits(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "model")
    report = verify_bundle(tiny.bundle_at(tmp_path / "bundle", source), checkpoint=source, tokens=4)
    assert not failed(report)


def test_text_prompts_of_a_bundle_with_a_tokenizer(tmp_path: Path) -> None:
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS, max_position_embeddings=64)
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "model", settings))
    out = tiny.bundle_at(tmp_path / "bundle", source, [1])
    assert verify_bundle(out, tokens=4).passed
    assert verify_bundle(out, prompts=["the harbour", [3, 4, 5]], tokens=4).passed


def test_nothing_is_printed(pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    verify_bundle(pristine, tokens=4, progress=said.append)
    assert capfd.readouterr().out == ""
    assert said[0] == "hashes"
    assert any("exact sampled" in stage for stage in said)


# -- what fails ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_torch")
def test_the_lowest_bit_of_one_weight_is_found(bundle: Path, source: Path) -> None:
    edit_weight(bundle, Q, lambda data: np.bitwise_xor(data[:1], 1, out=data[:1]))
    report = verify_bundle(bundle, checkpoint=source, tokens=4)
    assert failed(report) == {"weights"}
    assert Q in named(report, "weights").detail


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.usefixtures("no_torch")
def test_one_quantised_weight_is_found(precision: str, source: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "bundle", source, precision=precision)
    edit_weight(bundle, Q, lambda data: np.bitwise_xor(data[:1], 1, out=data[:1]))
    report = verify_bundle(bundle, checkpoint=source, tokens=4)
    assert failed(report) == {"weights"}
    assert named(report, "weights").figures["different"] == 1


@pytest.mark.usefixtures("no_torch")
def test_a_scale_too_small_for_its_block_is_found(source: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "bundle", source, precision="int8")

    def halve(data: Any) -> None:
        data.view(np.float32)[0] /= 2

    edit_weight(bundle, "model.layers.0.self_attn.o_proj.weight.scale", halve)
    assert "weights" in failed(verify_bundle(bundle, checkpoint=source, tokens=4))


def test_a_high_bit_of_a_weight_fails_without_a_checkpoint_too(bundle: Path) -> None:
    edit_weight(bundle, Q, lambda data: np.bitwise_xor(data[3:4], 0x02, out=data[3:4]))  # a power of sixteen
    found = failed(verify_bundle(bundle, tokens=4))
    assert {"recorded hidden_1", "recorded hidden_3", "recorded finished", "recorded logits"} <= found


def test_a_bundle_of_another_checkpoint_fails(bundle: Path, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(source, other)
    tiny.checkpoint(other, seed=1)
    report = verify_bundle(bundle, checkpoint=other, tokens=4)
    found = failed(report)
    assert {"weights", "checkpoint hidden_1", "checkpoint finished", "checkpoint logits", "exit_1"} <= found
    assert "checkpoint decisions exit_3" in found
    assert not any(name.startswith(("recorded", "exact", "passes")) for name in found)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("no_torch")
def test_another_checkpoint_is_found_in_every_precision(precision: str, source: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "bundle", source, precision=precision)
    other = tiny.checkpoint(tmp_path / "model", seed=1)
    found = failed(verify_bundle(bundle, checkpoint=other, tokens=4))
    assert {"weights", "checkpoint hidden_1", "checkpoint finished", "checkpoint logits"} <= found


def test_a_checkpoint_of_another_size_fails_and_the_rest_goes_on(bundle: Path, tmp_path: Path) -> None:
    other = tiny.checkpoint(tmp_path / "model", tiny.config(hidden_size=64))
    report = verify_bundle(bundle, checkpoint=other, tokens=4)
    assert failed(report) == {"checkpoint"}
    assert "hidden 64, not 32" in named(report, "checkpoint").detail
    assert report.references == ("numpy float32 recorded at build",)


def test_a_wrong_epsilon_fails(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(source, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    bundle = tiny.bundle_at(tmp_path / "bundle", other)
    found = failed(verify_bundle(bundle, checkpoint=source, tokens=4))
    assert {"checkpoint hidden_1", "checkpoint finished", "checkpoint logits", "exit_1", "exit_3"} <= found
    assert "weights" not in found


def test_an_epsilon_changed_in_a_graph_fails_without_a_checkpoint(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 1e-3

    edit_graph(bundle, "segment_0", change)
    assert "recorded hidden_1" in failed(verify_bundle(bundle, tokens=4))


def test_another_adapter_than_the_checkpoints_fails(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(source, other)
    tiny.add_exits(other, _exits(source), seed=1)
    bundle = tiny.bundle_at(tmp_path / "bundle", other)
    found = failed(verify_bundle(bundle, checkpoint=source, tokens=4))
    assert found == {"exit_1", "checkpoint decisions exit_1"}


def test_a_recorded_reference_that_differs_fails(bundle: Path) -> None:
    edit_recorded(bundle, "hidden_3", lambda rows: rows + np.float32(1e-2))
    assert "recorded hidden_3" in failed(verify_bundle(bundle, tokens=4))


def test_exact_mode_that_keeps_every_draft_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = Decoder._verify

    def gullible(self: Decoder, one: Continuation, decided: Any, at: int, finite: list[bool]) -> None:
        drafts, one.drafts = one.drafts, []
        last = min(len(drafts), len(finite) - 1) if drafts else 0
        verify(self, one, decided, at + last, finite[last:])
        one.certain = [*drafts, *one.certain[-1:]]

    monkeypatch.setattr(Decoder, "_verify", gullible)
    report = verify_bundle(bundle, tokens=TOKENS)
    found = failed(report)
    assert found
    assert all(name.startswith("exact") for name in found)
    assert "exact greedy, forced drafts, cap 8" in found
    assert "prompt 0, token 1" in named(report, "exact greedy, forced drafts, cap 8").detail


def test_a_row_that_depends_on_its_pass_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_step = Staircase.run_step

    def uneven(self: Staircase, k: int) -> Any:
        rows = run_step(self, k)
        if len(rows) == 1:
            rows *= np.float32(1.001)
        return rows

    monkeypatch.setattr(Staircase, "run_step", uneven)
    assert "passes" in failed(verify_bundle(bundle, tokens=4))


def test_a_decision_that_is_not_strict_fails(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.functions[0].node:
            node.op_type = {"Greater": "GreaterOrEqual", "Less": "LessOrEqual"}.get(node.op_type, node.op_type)

    edit_graph(bundle, "head", change)
    report = verify_bundle(bundle, tokens=4)
    assert failed(report) == {"decision_node"}
    assert named(report, "decision_node").figures["wrong_flags"] == 3 * named(report, "decision_node").figures["rows"]


@pytest.mark.parametrize("tensor", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
@pytest.mark.usefixtures("no_torch")
def test_a_nan_fails_everywhere_it_reaches(tensor: str, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.config())
    tensors[tensor][..., 0] = np.nan
    source = tiny.checkpoint(tmp_path / "model", tensors=tensors)
    report = verify_bundle(tiny.bundle_at(tmp_path / "bundle", source, [2]), checkpoint=source, tokens=4)
    found = failed(report)
    assert {"passes", "recorded finished", "recorded logits", "checkpoint finished", "decision_node"} <= found
    assert {"weights", "exact greedy, policy drafts", "exact greedy, forced drafts, cap 1"} <= found
    assert "not finite" in named(report, "exact greedy, policy drafts").detail
    assert "not finite" in named(report, "recorded logits").detail


# -- what is refused -------------------------------------------------------------------------------------------


def test_a_changed_file_is_refused(bundle: Path) -> None:
    file = bundle / "segments/segment_0.weights"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"segment_0\.weights"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token_ids", lambda ids: ids.astype(np.int32)),
        ("token_ids", lambda ids: ids[:0]),
        ("token_ids", lambda ids: ids - 1_000_000),
        ("token_ids", lambda ids: np.arange(129) % 7),
        ("hidden_1", lambda rows: rows[:, :-1]),
        ("hidden_3", lambda rows: rows.astype(np.float64)),
        ("finished", lambda rows: rows[None]),
        ("logits", lambda rows: rows[:1]),
    ],
)
def test_recorded_rows_that_do_not_fit_are_refused(bundle: Path, name: str, change: Any) -> None:
    edit_recorded(bundle, name, change)
    with pytest.raises(IntegrityError, match=name):
        verify_bundle(bundle, tokens=4)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"])
def test_recorded_rows_that_are_no_array_are_refused(bundle: Path, data: bytes) -> None:
    (bundle / "reference/finished.npy").write_bytes(data)
    reseal(bundle)
    with pytest.raises(IntegrityError, match="finished"):
        verify_bundle(bundle, tokens=4)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(bundle: Path) -> None:
    with (bundle / "reference/hidden_1.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 32)})
        file.write(b"\0" * 128)
    reseal(bundle)
    with pytest.raises(IntegrityError, match="hidden_1"):
        verify_bundle(bundle, tokens=4)


def test_prompts_that_do_not_fit_are_refused_before_anything_runs(pristine: Path) -> None:
    said: list[str] = []
    with pytest.raises(ContextFull):
        verify_bundle(pristine, prompts=[[1] * 250], tokens=20, progress=said.append)
    assert said == ["hashes"]
    with pytest.raises(UsageError, match="outside"):
        verify_bundle(pristine, prompts=[[9999]], tokens=2)
    for tokens in (-1, 0, 1):
        with pytest.raises(UsageError, match=rf"--tokens: {tokens} tokens show nothing(.|\n)*mend: generate 2 or more"):
            verify_bundle(pristine, tokens=tokens)
    with pytest.raises(UsageError, match="tokenizer"):
        verify_bundle(pristine, prompts=["text"])
    with pytest.raises(UsageError):
        verify_bundle(pristine, checkpoint=pristine)


# -- what is told ----------------------------------------------------------------------------------------------


def test_the_json_is_plain_and_complete(passing: VerifyReport) -> None:
    told = json.loads(json.dumps(passing.to_dict(), allow_nan=False))
    assert set(told) == {"passed", "digest", "precision", "references", "comparator", "checks", "commands"}
    assert told["passed"] is True
    assert len(told["digest"]) == 64
    assert told["precision"] == "fp32"
    for check in told["checks"]:
        assert set(check) == {"name", "passed", "figures", "tolerance", "detail"}
        assert set(check["tolerance"]) <= set(check["figures"])
        assert all(isinstance(value, (int, float)) for value in check["figures"].values())
        assert all(text.startswith(("<= ", ">= ")) for text in check["tolerance"].values())


def test_figures_that_are_not_finite_are_null_in_json(bundle: Path) -> None:
    def spoil(data: Any) -> None:
        data.view(np.float32)[:] = np.nan

    edit_weight(bundle, Q, spoil)
    told = json.loads(json.dumps(verify_bundle(bundle, tokens=4).to_dict(), allow_nan=False))
    assert told["passed"] is False
    assert next(check for check in told["checks"] if check["name"] == "passes")["figures"]["largest"] is None


def test_verification_imports_no_torch_before_it_needs_it() -> None:
    code = "import sys, eecompile.verify; print({'torch', 'transformers', 'polygraphy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


def test_the_polygraphy_commands_run(passing: VerifyReport) -> None:
    """Of each kind of graph one, as a user would paste it."""
    assert len(passing.commands) == 1 + 3 + 2 + 1 + 1
    for command in (passing.commands[1], passing.commands[4], passing.commands[-1]):
        program, *arguments = shlex.split(command)
        assert program == "polygraphy"
        said = polygraphy(*arguments)
        assert said.returncode == 0, said.stdout
        assert "PASSED" in said.stdout


def _exits(source: Path) -> list[Any]:
    return list(load_exits(source).schema.exits)
