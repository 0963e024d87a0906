"""`train policy` as a user runs it: to the end, broken off and resumed, in two processes, and into the bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from eecompile_training.config import load_config
from eecompile_training.policy import train as policy_train
from eecompile_training.policy import train_file
from eecompile_training.policy.curves import ALONE, sweep
from eecompile_training.policy.forced import Point, Rule
from eecompile_training.policy.settings import PolicyConfig
from eecompile_training.policy.train import price_of, reference_thresholds, world_of

from eecompile.bundle.read import read_bundle
from eecompile.bundle.sign import new_key, sign_bundle
from eecompile.bundle.write import write_overlay
from eecompile.cli import main
from eecompile.errors import IntegrityError, Uncalibrated, UsageError
from eecompile.runtime import Bundle
from eecompile.student.exits import ExitSpec

pytestmark = pytest.mark.torch
GATES: Any = ["learned", "max_prob"]
EXITS = [ExitSpec(layer=1, gates=GATES, gate_units=6), ExitSpec(layer=2, gates=GATES, gate_units=6)]
OPEN: Any = [{"learned": 0.5, "max_prob": 0.1}] * 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle whose exits agree now and then, and documents beside it."""
    folder = tmp_path_factory.mktemp("policy")
    source = tiny.add_exits(tiny.checkpoint(folder / "source", gain=0.25), EXITS)
    tiny.calibrate(tiny.bundle_at(folder / "bundle", source, slots=4), OPEN)
    rng = np.random.default_rng(0)
    lines = [json.dumps({"ids": rng.integers(0, tiny.VOCAB, 16).tolist()}) for _ in range(40)]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    return folder


def config(built: Path, output: Path, **changes: Any) -> Path:
    settings = {
        "bundle": str(built / "bundle"), "output": str(output), "steps": 4, "seed": 3, "evaluate_every": 2,
        "checkpoint_every": 2, "update": {"lr": 0.02}, "reward": {"weight": 0.5, "ramp": 2},
        "data": {"files": [str(built / "documents.jsonl")], "prompt_tokens": 6, "validation": 3, "held_out": 4},
        "rollouts": {"prompts": 3, "group": 4, "tokens": 8, "slots": 4},
    }  # fmt: skip
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps({**settings, **changes}))  # which is YAML too
    return path


@pytest.fixture(scope="module")
def whole(built: Path) -> Path:
    """A run that nothing broke."""
    train_file(config(built, built / "whole"))
    return built / "whole"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_run_leaves_gates_and_a_report(whole: Path) -> None:
    report = json.loads((whole / "evaluation.json").read_text())
    assert report["prompts"] == 4
    assert report["tokens"] == 32
    assert report["curves"]["fixed"]
    assert report["curves"]["tuned"]
    assert 0 < report["ships"]["cost"] < 1.5
    assert report["gain"] == pytest.approx(min(1.0, report["best_fixed"]["cost"]) / report["ships"]["cost"])
    assert report["best_fixed"]["agreement"] >= report["ships"]["agreement"]
    assert report["training"]["stopped"] is None
    for picture in ("curves.png", "plots/losses.png", "plots/reward.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["weight"] for line in lines if "loss" in line][:3] == [0.25, 0.5, 0.5]
    assert [line["step"] for line in lines if "validation.reward" in line] == [0, 2, 4]
    before = read_bundle(whole.parent / "bundle").policy
    tuned = json.loads((whole / "gates.json").read_text())["exits"]
    assert [one["layer"] for one in tuned] == [1, 2]
    assert [one["gate"] for one in tuned] != [e.gate.model_dump() for e in before.exits if e.gate]


class Killed(Exception):
    """In place of the signal."""


def test_the_rivals_are_max_prob_alone_too(built: Path) -> None:
    bundle = Bundle.open(built / "bundle")
    world = world_of(load_config(config(built, built / "rivals", others={"max_prob": 0.3}), PolicyConfig), bundle)

    class Table:
        def point(self, rule: Rule, confidence: Any = None) -> Point:
            return Point(rule.others["max_prob"], 1.0, 1.0, 1.0)

    said: Any = [{0: np.array([0.2, 0.7], np.float32), 1: np.array([0.4], np.float32)}]
    tried = {own: sweep(bundle.manifest, world, cast(Any, Table()), said, own=own) for own in (True, False)}
    alone = {own: {t.rule.others["max_prob"] for t in found if not t.rule.learned} for own, found in tried.items()}
    assert alone[True] >= set(ALONE)
    assert not alone[False] >= set(ALONE)


def test_a_run_goes_on_after_a_kill_bit_for_bit(built: Path, whole: Path) -> None:
    path = config(built, built / "broken")

    def kill(stage: str) -> None:
        if stage.startswith("step 4"):  # the last checkpoint is after two steps, metrics go up to three
            raise Killed

    with pytest.raises(Killed):
        train_file(path, progress=kill)
    assert not (built / "broken" / "gates.json").exists()
    train_file(path, resume=True)
    for name in ("gates.json", "metrics.jsonl", "evaluation.json"):
        assert (built / "broken" / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(UsageError, match="finished"):
        train_file(path, resume=True)


def test_the_seed_decides(built: Path, whole: Path) -> None:
    """That nothing else does, the broken run above shows."""
    train_file(config(built, built / "other", seed=4, steps=1))
    first = [(built / name / "metrics.jsonl").read_text().splitlines()[:2] for name in ("whole", "other")]
    assert first[0][0] == first[1][0]  # the gates as they were
    assert first[0][1] != first[1][1]


def test_two_processes_learn_what_one_does(built: Path, whole: Path) -> None:
    path = config(built, built / "two")
    program = "import sys; from eecompile.cli import main; main(['train', 'policy', sys.argv[1], '--json'])"
    script = built / "two.py"
    script.write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, str(script), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(built / "two")  # one of them speaks
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, built / "two")
    )
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-9, abs=1e-12)


def test_tuned_gates_load_without_a_rebuild_and_close_confident_mode(built: Path, whole: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "bundle", tmp_path / "bundle"))
    core = (bundle / "manifest.json").read_bytes()
    Bundle.open(bundle).session(mode="confident")
    result = invoke("policy", bundle, "set", "--gates", whole / "gates.json")
    assert result.exit_code == 0, result.output
    assert (bundle / "manifest.json").read_bytes() == core
    opened, tuned = Bundle.open(bundle), json.loads((whole / "gates.json").read_text())["exits"]
    assert [e.gate.model_dump() for e in opened.files.policy.exits if e.gate] == [one["gate"] for one in tuned]
    with pytest.raises(Uncalibrated, match="no calibration of these exits") as caught:
        opened.session(mode="confident")
    assert "eecompile calibrate" in caught.value.mend
    assert tiny.tokens(opened, [1, 2, 3], 12, mode="exact") == tiny.tokens(opened, [1, 2, 3], 12)
    tiny.calibrate(bundle, OPEN).session(mode="confident")  # a new calibration opens it again


def test_signed_bundles_take_gates_with_their_key(built: Path, whole: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "bundle", tmp_path / "bundle"))
    keys = tmp_path / "mine.pem", tmp_path / "other.pem"
    for key in keys:
        new_key(key)
    sign_bundle(bundle, keys[0])
    assert invoke("policy", bundle, "set", "--gates", whole / "gates.json").exit_code == 2
    assert invoke("policy", bundle, "set", "--gates", whole / "gates.json", "--key", keys[1]).exit_code == 4
    assert invoke("policy", bundle, "set", "--gates", whole / "gates.json", "--key", keys[0]).exit_code == 0
    read_bundle(bundle, key=keys[0].with_suffix(".pem.pub"))
    with pytest.raises(IntegrityError):
        read_bundle(bundle, key=keys[1].with_suffix(".pem.pub"))


def test_what_cannot_be_trained_is_refused(built: Path, shelf: Any) -> None:
    bare = shelf.bundle(at=[2])
    for changes, message in (
        ({"bundle": str(bare.files.path)}, "no learned gate"),
        ({"kv": "propagate"}, "no graphs for propagate"),
        ({"pending_cap": 9}, "pending cap"),
        ({"guards": {"minimum_depth": 3}}, "no exit is left"),
        ({"others": {"patience": 1}}, "patience is no gate of a head"),
        ({"reward": {"costs": "profile"}}, "no profile"),
        ({"reward": {"quality": "nowhere:none"}}, "there is no reward"),
        ({"update": {"learning_rate": 1}}, "there is no such key"),
        ({"data": {"files": [str(built / "documents.jsonl")], "limit": 1}}, "the documents give no prompt"),
    ):
        result = invoke("train", "policy", config(built, built / "refused", **changes))
        assert result.exit_code == 2, result.output
        assert message in result.output.replace("\n", " ")


def test_the_reference_is_calibrated_where_anything_is(built: Path) -> None:
    bundle = Bundle.open(built / "bundle")
    plain = load_config(config(built, built / "one"), PolicyConfig)
    world = world_of(plain, bundle)
    assert reference_thresholds(plain, bundle, world) == {0: 0.5, 1: 0.5}
    own = load_config(config(built, built / "two-thresholds", reference={"thresholds": {2: 0.9}}), PolicyConfig)
    assert reference_thresholds(own, bundle, world) == {0: 0.5, 1: 0.9}


def test_a_gate_that_every_token_passes_is_no_reference(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(built / "bundle")
    plain = load_config(config(built, built / "open"), PolicyConfig)
    monkeypatch.setattr(policy_train, "matching_calibrations", lambda *_: [None])
    monkeypatch.setattr(policy_train, "calibrated_thresholds", lambda _: [{"learned": 0.0}, {"learned": 0.25}])
    assert reference_thresholds(plain, bundle, world_of(plain, bundle)) == {0: 0.5, 1: 0.25}


def test_costs_come_from_the_profile_where_there_is_one(built: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "bundle", tmp_path / "bundle"))
    passes = [{"graph": "segment_0", "rows": 1, "length": n, "seconds": s} for n, s in ((10, 1.0), (20, 3.0))]
    write_overlay(bundle, "overlays/profile-here.json", {"device": "paper", "threads": 1, "passes": passes})
    plain = load_config(config(built, built / "priced"), PolicyConfig)
    assert price_of(plain, Bundle.open(bundle))("segment_0", 1, 15) == pytest.approx(2.0)
    assert price_of(plain, Bundle.open(built / "bundle"))("segment_0", 1, 15) != pytest.approx(2.0)


def test_the_documented_config_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "TRAINING.md").read_text(encoding="utf-8")
    [block] = [part.split("```")[0] for part in text.split("```yaml\n") if part.startswith("bundle:")]
    (tmp_path / "policy.yaml").write_text(block)
    assert load_config(tmp_path / "policy.yaml", PolicyConfig).reward.weight == 0.5
