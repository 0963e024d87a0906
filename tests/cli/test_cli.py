"""Every command on a tiny bundle: results on stdout, faults in words, the exit status of each kind of fault."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_t5
from commands import cli, cli_json

from eecompile.target import FOLDER


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("cli") / "checkpoint"
    return tiny.add_tokenizer(tiny.checkpoint(path, tiny.config(vocab_size=288)))


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle of it with exits after 1 and 3 layers."""
    return tiny.bundle_at(tmp_path / "bundle", checkpoint, [1, 3])


def test_build_makes_a_bundle_and_says_what_it_did(checkpoint: Path, tmp_path: Path) -> None:
    said = cli_json("build", checkpoint, "-o", tmp_path / "b", "--exits", "2", "--precision", "int8", "--context", "64")
    assert (said["precision"], said["context"], said["exits"]) == ("int8", 64, [2])
    assert cli_json("check", tmp_path / "b") == {"intact": True, "digest": said["digest"], "signed": False}
    held = cli_json("inspect", tmp_path / "b")
    assert held["manifest"]["model"]["context"] == 64
    assert [p["device"] for p in held["profiles"]], "a build measures the machine"


def test_an_encoder_decoder_from_checkpoint_to_text(tmp_path: Path) -> None:
    """Built, described, run in two modes on text and ids; confident mode wants a calibration."""
    settings = tiny_t5.newer(vocab_size=tiny.TOKENIZER_IDS, num_layers=1)
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "t5", settings))
    bundle = tmp_path / "b"
    said = cli_json("build", source, "-o", bundle, "--exits", "1,3", "--precision", "int4", "--no-profile")
    assert said["exits"] == [1, 3]
    assert "1 layers over a source" in cli("inspect", bundle).stdout
    full = cli_json("run", bundle, "the other", "--raw", "--max-new-tokens", "9")
    ids = ",".join(map(str, full["prompt_ids"]))
    drafts = ("--mode", "exact", "--threshold", "1=0", "--threshold", "3=0")
    exact = cli_json("run", bundle, "--prompt-ids", ids, "--max-new-tokens", "9", *drafts)
    assert exact["token_ids"] == full["token_ids"]
    assert exact["stats"]["drafted"] > 0
    assert full["stats"]["layer_rows"] == 4 * len(full["token_ids"])
    cli("run", bundle, "the other", "--mode", "confident", status=2)


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    said = cli_json("build", checkpoint, "-o", tmp_path / "b", "--dry-run")
    assert said["layers"] == 4
    assert "this machine by rates measured" in said["predicted"]["basis"]
    assert said["predicted"]["forecasts"][0]["tokens_per_second"] > 0
    assert not (tmp_path / "b").exists()


def test_dry_run_predicts_a_device_that_is_not_here(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("build", checkpoint, "-o", tmp_path / "b", "--exits", "1,3", "--dry-run", "--target")
    said = cli_json(*arguments, "jetson-orin-nano")["predicted"]
    assert [f["mode"] for f in said["forecasts"]] == ["full", "confident", "confident", "exact", "exact"]
    assert said["memory"]["fits"] is True
    printed = cli(*arguments, "jetson-orin-nano").stdout
    assert "predicted, not measured: on jetson-orin-nano by its data sheet" in printed
    assert "of 8.00 GB, fits" in printed
    assert "no speed is predicted" in cli(*arguments, "rtx").stdout
    assert not (tmp_path / "b").exists()


def test_a_build_for_another_device_is_judged_by_the_cost_model(checkpoint: Path, tmp_path: Path) -> None:
    """Nothing of this machine is measured; the exits' reasons name the device."""
    cli("build", checkpoint, "-o", tmp_path / "b", "--exits", "1,3", "--target", "jetson-orin")
    held = cli_json("inspect", tmp_path / "b")
    assert held["manifest"]["target"] == "jetson-orin"
    assert held["profiles"] == []
    assert all("nothing is known of them without a calibration" in e["reason"] for e in held["policy"]["exits"])


def test_the_cost_model_beside_a_profile(bundle: Path) -> None:
    assert "no profile to compare with" in cli("profile", bundle, "--check-model", status=2).stderr
    cli("profile", bundle, "--quick")
    said = cli_json("profile", bundle, "--check-model")
    assert {g["graph"] for g in said["graphs"]} == {
        "embed",
        "head",
        *(f"segment_{i}" for i in range(3)),
        "exit_0",
        "exit_1",
    }
    assert "predicted" in cli("profile", bundle, "--check-model").stdout


def test_run_prints_text_ids_and_what_it_cost(bundle: Path) -> None:
    said = cli_json("run", bundle, "the other", "--max-new-tokens", "6", "--mode", "exact", "--threshold", "1=0.01")
    assert len(said["token_ids"]) == len(said["exit_layers"]) == 6
    assert said["mode"] == "exact"
    assert said["stats"]["drafted"] > 0
    assert set(said["exit_layers"]) <= {1, 3, 4}
    full = cli_json("run", bundle, "the other", "--max-new-tokens", "6")
    assert full["token_ids"] == said["token_ids"]
    assert full["text"] == said["text"]
    assert full["exit_layers"] == [4] * 6


def test_run_applies_the_chat_template_unless_raw(bundle: Path) -> None:
    raw = cli_json("run", bundle, "hi", "--raw", "--max-new-tokens", "1")["prompt_ids"]
    chat = cli_json("run", bundle, "hi", "--max-new-tokens", "1")["prompt_ids"]
    assert len(chat) > len(raw)
    ids = cli_json("run", bundle, "--prompt-ids", ",".join(map(str, raw)), "--max-new-tokens", "1")["prompt_ids"]
    assert ids == raw


def test_streaming_prints_the_same_text(bundle: Path) -> None:
    whole = cli("run", bundle, "hi", "--max-new-tokens", "8").stdout
    assert cli("run", bundle, "hi", "--max-new-tokens", "8", "--stream").stdout == whole


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "{bundle}"], 2, "either a PROMPT or --prompt-ids"),
        (["run", "{bundle}", "--prompt-ids", "1,x"], 2, "not a list of numbers"),
        (["run", "{bundle}", "--prompt-ids", "1,999"], 2, "outside 0..287"),
        (["run", "{bundle}", "--prompt-ids", ","], 2, "the prompt is empty"),
        (["run", "{bundle}", "hi", "--max-new-tokens", "999"], 2, "do not fit the context"),
        (["run", "{bundle}", "hi", "--mode", "confident"], 2, "eecompile calibrate"),
        (["run", "{bundle}", "hi", "--mode", "exact", "--threshold", "2=0.5"], 2, "no exit at layer 2"),
        (["run", "{bundle}", "hi", "--mode", "exact", "--threshold", "1:margin=0.5"], 2, "none of the exit's gates"),
        (["run", "{bundle}", "hi", "--mode", "exact", "--threshold", "1=7"], 2, "outside"),
        (["run", "{bundle}", "hi", "--mode", "never-heard"], 2, "Invalid value"),
        (["run", "{bundle}/nothing", "hi"], 4, "mend"),
        (["build", "{bundle}/nothing", "-o", "x"], 2, "no such checkpoint"),
        (["build", "{checkpoint}", "-o", "x", "--exits", "3,1"], 2, "increasing order"),
        (["build", "{checkpoint}", "-o", "x", "--exits", "4"], 2, "before the last of 4 layers"),
        (["build", "{checkpoint}", "-o", "x", "--target", "toaster"], 2, "targets: a10, a100, b200, cpu"),
        (["build", "{checkpoint}", "-o", "x", "--context", "9999"], 2, "context"),
        (["run", "{bundle}", "hi", "--plugin", "nowhere"], 2, "leave --plugin out"),
        (["bench", "{bundle}", "--plugin", "nowhere"], 2, "the back end is onnxruntime"),
        (["verify", "{bundle}", "--tokens", "1"], 2, "generate 2 or more"),
        (["policy", "{bundle}", "set", "--budget", "lots"], 2, "neither a number nor none"),
        (["policy", "{bundle}", "set", "--threshold", "1=0.5"], 2, "not permitted"),
    ],
)
def test_faults_say_what_and_how_to_mend(
    arguments: list[str], status: int, words: str, bundle: Path, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    filled = [a.format(bundle=bundle, checkpoint=checkpoint) for a in arguments]
    result = cli(*filled, status=status)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_changed_file_is_status_4(bundle: Path) -> None:
    file = bundle / "segments" / "segment_0.weights"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert "segment_0.weights" in cli("check", bundle, status=4).stderr
    cli("run", bundle, "hi", status=4)


def test_signing(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    assert "manifest.json" in cli("sign", bundle, "--key", key, "--new-key").stdout
    assert "signed by this key" in cli("check", bundle, "--key", f"{key}.pub").stdout
    assert "signed" in cli("policy", bundle, "set", "--minimum-depth", "2", status=2).stderr
    cli("policy", bundle, "set", "--minimum-depth", "2", "--key", key)
    cli("check", bundle, "--key", f"{key}.pub")
    cli("sign", bundle, "--key", tmp_path / "other.pem", "--new-key")
    cli("check", bundle, "--key", f"{key}.pub", status=4)


def test_policy_shows_and_sets(bundle: Path) -> None:
    cli(
        "policy", bundle, "set", "--mode", "draft", "--threshold", "1=never", "--threshold", "3=0.25", "--budget", "400"
    )
    policy = cli_json("policy", bundle, "show")
    assert [e["draft"] for e in policy["exits"]] == [None, {"max_prob": 0.25}]
    assert policy["budget"] == 400
    assert cli_json("run", bundle, "hi", "--max-new-tokens", "200")["stop_reason"] == "budget"
    cli("policy", bundle, "set", "--budget", "none")
    assert cli_json("policy", bundle, "show")["budget"] is None


def test_profile_closes_and_opens_exits(bundle: Path) -> None:
    assert "exits on this machine" in cli("profile", bundle, "--quick").stdout
    assert len(cli_json("inspect", bundle)["profiles"]) == 1


def test_verify_passes_and_fails(bundle: Path) -> None:
    report = cli_json("verify", bundle, "--tokens", "6")
    assert report["passed"]
    assert len(report["checks"]) >= 4


def test_bench_and_report(bundle: Path, tmp_path: Path) -> None:
    said = cli_json("bench", bundle, "--max-new-tokens", "6", "--rounds", "1")
    assert said["modes"].keys() == {"full", "exact"}
    assert "calibrat" in said["refused"]["confident"]
    assert said["modes"]["full"]["tokens_per_second"] > 0
    cli("report", bundle, "--max-new-tokens", "4", "--rounds", "1")
    assert "<html" in (bundle / "report.html").read_text()[:500]
    cli("check", bundle)


def test_a_target_is_described_by_name_or_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text((FOLDER / "l4.toml").read_text().replace('name = "l4"', 'name = "mine"'))
    said = cli_json("targets", own, "l4")
    assert set(said) == {"mine", "l4"}
    assert said["mine"]["flops"] == said["l4"]["flops"]
    assert "data sheet (2023)" in cli("targets", own).stdout
    own.write_text(own.read_text().replace("memory = 24_000_000_000", "memory = -1"))
    assert "memory: Input should be greater than or equal to 0" in cli("targets", own, status=2).stderr


def test_targets_doctor_and_completion() -> None:
    assert {"cpu", "jetson-orin", "rtx"} <= set(cli_json("targets"))
    assert "102 GB/s" in cli("targets").stdout
    assert cli_json("doctor")["packages"]["onnxruntime"]
    assert "_EECOMPILE_COMPLETE" in cli("completion", "bash").stdout


def test_help_names_every_command() -> None:
    said = cli("--help").stdout
    for command in ("build", "run", "inspect", "verify", "bench", "profile", "report", "policy", "sign", "check"):
        assert f"  {command}" in said


def test_the_module_starts_without_loading_what_a_command_may_not_need() -> None:
    code = "import sys, eecompile.cli; print({'torch', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


def test_hostile_text_in_a_bundle_cannot_drive_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "c\x1b[31m[bold]", tiny.config())
    out = tiny.bundle_at(tmp_path / "b", source)
    said = cli("inspect", out).stdout
    assert "\x1b" not in said
    assert "[bold]" in said
