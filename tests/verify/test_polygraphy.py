"""Polygraphy's own command line over a bundle: the runner, the folder of checks, and what they refuse."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from broken import edit_weight
from commands import cli
from polygraphy_command import polygraphy

from eecompile import contract as c
from eecompile.errors import MissingBackend, UsageError
from eecompile.runtime import Bundle
from eecompile.verify import polygraphy_folder
from eecompile.verify.polygraphy_folder import Command, check_polygraphy, run_commands, write_folder

DEMO = Path(__file__).parents[2] / "build" / "demo" / "bundle"


@pytest.fixture(scope="module")
def opened(pristine: Path) -> Bundle:
    """The intact bundle."""
    return Bundle.open(pristine)


@pytest.fixture(scope="module")
def folder(opened: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checks."""
    path = tmp_path_factory.mktemp("checks") / "folder"
    write_folder(opened, path)
    return path


def lines(folder: Path) -> dict[str, list[str]]:
    """The folder's commands by the graph that they run, without `polygraphy run`."""
    commands = [shlex.split(line) for line in (folder / "commands.sh").read_text().splitlines()[2:]]
    assert all(command[:2] == ["polygraphy", "run"] for command in commands)
    return {Path(command[2]).stem: command[1:] for command in commands}


def test_every_graph_has_a_command(folder: Path) -> None:
    graphs = ["reference", "embed", "segment_0", "segment_1", "segment_2", "exit_0", "exit_1", "head"]
    assert list(lines(folder)) == graphs
    assert {path.stem for path in folder.glob("*.json")} == set(graphs[2:])


def test_the_runner_passes_on_recorded_inputs_which_can_be_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    command, inputs = lines(folder)["reference"], tmp_path / "inputs.json"
    said = polygraphy(*command, "--save-inputs", inputs)
    assert said.returncode == 0, said.stdout
    assert "Passed: 2/2 iterations" in said.stdout
    assert "exit_flag: 0 of 23 differ" in said.stdout
    loaded = polygraphy(*command[: command.index("--data-loader-script")], "--load-inputs", inputs, "--atol", "1e-5")
    assert loaded.returncode == 0, loaded.stdout
    assert "Passed: 2/2 iterations" in loaded.stdout
    assert "eecompile compares" not in loaded.stdout  # a tolerance of the user's own


def test_a_segment_is_held_to_the_float32_model(folder: Path, opened: Bundle, tmp_path: Path) -> None:
    """The segment passes by plain Polygraphy; one with another weight in it does not."""

    def spoil(data: Any) -> None:
        data[400:800] = 0

    commands = [Command("intact", shlex.join(["polygraphy", *lines(folder)["segment_1"]]))]
    broken = Path(shutil.copytree(opened.files.path, tmp_path / "bundle"))
    edit_weight(broken, "model.layers.2.mlp.down_proj.weight", spoil, graph="segment_1")
    commands.append(Command("broken", commands[0].line.replace(str(opened.files.path), str(broken))))
    intact, spoiled = run_commands(commands, tmp_path, lambda stage: None)
    assert intact.passed, (tmp_path / "intact.log").read_text()
    assert not spoiled.passed
    assert "FAILED | hidden_out: largest" in spoiled.note
    assert str(tmp_path / "broken.log") in spoiled.note


def test_another_model_s_segments_do_not_pass_for_the_uncut_graph(opened: Bundle, tmp_path: Path) -> None:
    """On made-up inputs, and without a word on how to compare."""
    other = tiny.bundle_at(tmp_path / "other", tiny.checkpoint(tmp_path / "model", seed=7, gain=0.4), [1, 3])
    said = polygraphy(
        "run", opened.files.path / "reference.onnx", "--onnxrt", "--eecompile", "--eecompile-bundle", other
    )
    assert said.returncode == 1
    assert "FAILED | logits: largest" in said.stdout
    assert "no near-tie" in said.stdout


def test_what_is_no_bundle_is_refused(opened: Bundle, tmp_path: Path) -> None:
    said = polygraphy("run", opened.files.path / "reference.onnx", "--eecompile", "--eecompile-bundle", tmp_path)
    assert said.returncode == 1
    assert "there is no bundle here" in said.stdout
    assert "Traceback" not in said.stdout


def test_verify_runs_the_folder_s_commands(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """All of them, of which this lets the last one run."""
    made = polygraphy_folder.write_folder
    monkeypatch.setattr("eecompile.verify.verify.write_folder", lambda *a: made(*a)[-1:])
    report = json.loads(cli("verify", pristine, "--tokens", 4, "--polygraphy", tmp_path / "folder", "--json").stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["polygraphy head"]["passed"] is True
    assert checks["polygraphy head"]["figures"] == {"status": 0}
    assert len(report["commands"]) == 1
    assert "PASSED" in (tmp_path / "folder" / "head.log").read_text()


def test_the_folder_may_not_be_in_the_bundle(opened: Bundle) -> None:
    with pytest.raises(UsageError, match="the folder is in the bundle"):
        check_polygraphy(opened, opened.files.path / "checks")


def test_files_of_others_are_not_written_over(opened: Bundle, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    check_polygraphy(opened, tmp_path / "mine")  # empty
    check_polygraphy(opened, tmp_path / "new")
    check_polygraphy(opened, folder)
    (tmp_path / "mine" / "commands.sh").write_text("set -e\n")
    for path, reason in (("mine", "did not write"), ("mine/commands.sh", "not a folder")):
        with pytest.raises(UsageError, match=reason):
            check_polygraphy(opened, tmp_path / path)


@pytest.mark.usefixtures("no_polygraphy")
def test_without_polygraphy_it_says_what_to_install(opened: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MissingBackend, match=r"eecompile\[verify\]"):
        check_polygraphy(opened, tmp_path / "folder")


@pytest.mark.real
def test_a_real_bundle_by_polygraphy(tmp_path: Path) -> None:
    """SmolLM2 with trained exits: the chain against the uncut graph, and one segment against the float32 model."""
    if not (DEMO / c.MANIFEST).exists():
        pytest.skip("build/demo/bundle is absent: run make demo")
    commands = {command.name: command for command in write_folder(Bundle.open(DEMO, integrity="size"), tmp_path)}
    chosen = [commands[name] for name in ("reference_recorded", "segment_1")]
    for check in run_commands(chosen, tmp_path, lambda stage: None):
        assert check.passed, check.note


def test_a_command_that_dies_takes_no_other_with_it(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text("import os\n\n\ndef load_data():\n    os.abort()\n")
    embed = lines(folder)["embed"]
    commands = [
        Command("dies", shlex.join(["polygraphy", *embed[:3], "--data-loader-script", str(script)])),
        Command("lives", shlex.join(["polygraphy", *embed])),
    ]
    dies, lives = run_commands(commands, tmp_path, lambda stage: None)
    assert dies.figures == {"status": -6}
    assert not dies.passed
    assert lives.passed
