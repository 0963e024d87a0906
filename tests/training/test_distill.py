"""`train distill` on tiny models: runs that a kill does not change, processes that add up, and students that build."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import distilling
import torch
from click.testing import CliRunner
from distilling import EVERYTHING, tensors
from eecompile_training.config import merge
from eecompile_training.data import IGNORED
from eecompile_training.distill import distill, open_task, train_file
from eecompile_training.distill_config import DistillConfig
from eecompile_training.distillation import Distillation
from eecompile_training.distilled import StepPlan
from eecompile_training.recipes import RECIPES
from eecompile_training.runs import Run
from processes import killed_after, run_in_two
from pydantic import ValidationError
from safetensors.numpy import load_file
from torch.nn import functional

from eecompile.cli import main
from eecompile.errors import NumericError, UsageError
from eecompile.student.lora import merge_lora
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch


def run(root: Path, **changes: Any) -> dict[str, Any]:
    return distill(DistillConfig.model_validate(distilling.config(root, **changes)))


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    changes = merge(EVERYTHING, {"steps": 40})
    run(tmp_path, **changes, output=str(tmp_path / "whole"))
    path = distilling.write_config(tmp_path, **changes, output=str(tmp_path / "broken"))
    broken, whole = Run(tmp_path / "broken"), Run(tmp_path / "whole")
    assert killed_after(8, "distill", path, broken)
    assert not broken.student.exists()
    kept = [p.name for p in sorted((broken.path / "checkpoints").glob("*.pt"))]
    assert kept[0] >= "step-00000003.pt"
    train_file(path, resume=True)
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    ours, theirs = tensors(broken.student), tensors(whole.student)
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not list((broken.path / "checkpoints").iterdir())


def test_two_processes_come_to_what_one_comes_to(tmp_path: Path) -> None:
    changes = merge(EVERYTHING, {"steps": 6, "micro": 1})
    run(tmp_path, **changes, output=str(tmp_path / "one"))
    path = distilling.write_config(tmp_path, **changes, output=str(tmp_path / "two"))
    run_in_two("distill", path)
    one, two = (tensors(tmp_path / name / "student") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5, err_msg=name)
    metrics, others = (Run(tmp_path / name).read_metrics() for name in ("one", "two"))
    for a, b in zip(metrics, others, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_rows_in_turn_add_up_to_rows_at_once(tmp_path: Path) -> None:
    for micro in (1, 3):
        run(tmp_path, **merge(EVERYTHING, {"steps": 4, "micro": micro}), output=str(tmp_path / str(micro)))
    one, three = tensors(tmp_path / "1" / "student"), tensors(tmp_path / "3" / "student")
    for name in one:
        np.testing.assert_allclose(one[name], three[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_it_learns_and_the_student_runs_as_trained(tmp_path: Path) -> None:
    summary = run(tmp_path, steps=60, evaluate_every=60, optimizer={"lr": 1e-2})
    logged = Run(tmp_path / "run").read_metrics()
    assert logged[58]["loss"] < 0.5 * logged[0]["loss"]
    assert summary["exit_3.agreement"] > 0.5
    bundle = tiny.open_bundle(tmp_path / "b", tmp_path / "run" / "student")
    ids = [5, 9, 7, 3] * 4
    oracle = tiny.hugging_face(tmp_path / "run" / "student")
    assert tiny.tokens(bundle, ids, 8) == tiny.hugging_face_tokens(oracle, ids, 8)
    assert tiny.tokens(bundle, ids, 8, mode="exact") == tiny.tokens(bundle, ids, 8)
    assert {p.name for p in (tmp_path / "run" / "plots").iterdir()} == {"losses.png", "agreement.png", "ce.png"}


RECIPE_CHANGES: dict[str, dict[str, Any]] = {
    "ee-llm": {"exits": {"at": [2, 3]}},
    "calm": {"second": {"steps": 2}},
    "dssd": {"exits": {"rank": 8}},
    "specee": {"exits": {"shortlist": 32, "predictor_units": 8}},
    "free": {"exits": {"at": [2]}},
}
FROZEN = ("ee-tuning", "dssd", "balcony", "specee")
DECODERS = sorted(set(RECIPES) - {"deebert", "pabee"})


@pytest.mark.parametrize("name", DECODERS)
def test_every_recipe_trains_what_it_says_and_its_student_builds(tmp_path: Path, name: str) -> None:
    changes = merge({"recipe": name, "steps": 4, "evaluate_every": 4}, RECIPE_CHANGES.get(name, {}))
    path = distilling.write_config(tmp_path, **changes)
    done = CliRunner().invoke(main, ["train", "distill", str(path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    student = tmp_path / "run" / "student"
    before, after = tiny.weights(tiny.config(tie_word_embeddings=True), gain=distilling.GAIN), tensors(student)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == (set() if name in FROZEN else set(before))
    assert json.loads((student / "early_exit.json").read_text())["provenance"]["recipe"] == name
    bundle = tiny.open_bundle(tmp_path / "b", student)
    assert len(bundle.manifest.exits) == len(open_student(student).exits.schema.exits) > 0


def test_a_second_stage_trains_only_what_it_names(tmp_path: Path) -> None:
    second = {"steps": 3, "tune": {"backbone": False}, "losses": {"task": 0, "exits": None, "gates": 1.0}}
    gated = {"exits": {"gates": ["learned"], "units": 4}}
    run(tmp_path, **gated, steps=5, output=str(tmp_path / "one"))
    run(tmp_path, **gated, steps=8, second=second, optimizer={"schedule": "constant"}, output=str(tmp_path / "two"))
    run(tmp_path, **gated, steps=5, optimizer={"schedule": "constant"}, output=str(tmp_path / "three"))
    first, both = tensors(tmp_path / "three" / "student"), tensors(tmp_path / "two" / "student")
    changed = {name for name in first if not np.array_equal(first[name], both[name])}
    assert changed
    assert all(".gate." in name for name in changed), sorted(changed)


def test_lora_changes_only_its_targets_and_is_merged(tmp_path: Path) -> None:
    run(tmp_path, tune={"lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}}, steps=4)
    after = tensors(tmp_path / "run" / "student")
    before = tiny.weights(tiny.config(tie_word_embeddings=True), gain=distilling.GAIN)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {n for n in before if "q_proj" in n or "down_proj" in n}
    merge_lora(tmp_path / "model", tmp_path / "run" / "adapter", tmp_path / "merged")
    again = tensors(tmp_path / "merged")
    assert all(np.allclose(again[n], after[n], rtol=0, atol=1e-6) for n in after)
    names = ("early_exit.json", "early_exit.safetensors")
    assert all((tmp_path / "merged" / n).read_bytes() == (tmp_path / "run/student" / n).read_bytes() for n in names)
    with pytest.raises(UsageError, match="no LoRA"):
        run(tmp_path, tune={"lora": {"targets": ["nothing"]}}, output=str(tmp_path / "other"))


def test_only_the_first_layers_are_tuned(tmp_path: Path) -> None:
    run(tmp_path, tune={"layers": 2, "embeddings": False}, steps=3)
    after = tensors(tmp_path / "run" / "student")
    before = tiny.weights(tiny.config(tie_word_embeddings=True), gain=distilling.GAIN)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {n for n in before if ".layers.0." in n or ".layers.1." in n}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exits": {"at": [4]}}, "before the last of 4 layers"),
        ({"exits": {"gates": ["learned", "fixed", "delta"]}}, "delta is not a gate"),
        ({"losses": {"hidden": {"of": "self"}}}, "onto themselves"),
        ({"student": {"kind": "layers", "count": 9}}, "9 layers of 4"),
        ({"batch": 3, "micro": 2}, None),
        ({"optimizer": {"lr": 1e6, "clip": None}}, "not a number"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    if said is None:
        run(tmp_path, **changes, steps=2)
        return
    with pytest.raises((UsageError, NumericError), match=said):
        run(tmp_path, **changes)


def test_a_narrower_student_learns_from_a_wider_teacher(tmp_path: Path) -> None:
    wide = tiny.config(hidden_size=48, head_dim=8, num_attention_heads=6, num_key_value_heads=2)
    tiny.checkpoint(tmp_path / "wide", wide, gain=distilling.GAIN)
    losses = {"hidden": {"kind": "mse", "map": {"kind": "dynamic"}}, "last_kl": 1.0}
    student = {"kind": "prune", "intermediate": 40, "kv_heads": 1}
    run(tmp_path, teacher=str(tmp_path / "wide"), losses=losses, student=student, steps=4)
    spec = open_student(tmp_path / "run" / "student").spec
    assert (spec.intermediate, spec.kv_heads, spec.hidden) == (40, 1, 32)
    other = tiny.checkpoint(tmp_path / "other", tiny.config(vocab_size=96), gain=distilling.GAIN)
    with pytest.raises(UsageError, match="same tokenizer"):
        run(tmp_path, teacher=str(other), losses=losses, output=str(tmp_path / "r2"))


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_ways_to_save_memory_train_the_same_model_roughly(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(tmp_path, steps=3, output=str(tmp_path / "plain"))
    run(tmp_path, steps=3, **changes)
    plain, saved = (Run(tmp_path / name).read_metrics() for name in ("plain", "run"))
    tolerance = 2e-2 if "precision" in changes else 1e-5
    assert [line["loss"] for line in saved if "loss" in line] == pytest.approx(
        [line["loss"] for line in plain if "loss" in line], rel=tolerance
    )


def test_lora_in_the_first_layers_leaves_the_others_alone(tmp_path: Path) -> None:
    run(tmp_path, tune={"layers": 2, "lora": {"rank": 2}}, steps=3)
    after = tensors(tmp_path / "run" / "student")
    before = tiny.weights(tiny.config(tie_word_embeddings=True), gain=distilling.GAIN)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {n for n in before if (".layers.0." in n or ".layers.1." in n) and "norm" not in n}


def test_exits_of_the_checkpoint_go_on(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    own = tmp_path / "run" / "student"
    rest = {"model": str(own), "output": str(tmp_path / "on"), "optimizer": {"lr": 1e-9}, "steps": 1}
    run(tmp_path, **rest, exits={"start": "checkpoint", "gates": ["learned"]})
    first, second = (load_file(path / "early_exit.safetensors") for path in (own, tmp_path / "on" / "student"))
    assert all(np.allclose(first[name], second[name], rtol=0, atol=1e-7) for name in first)
    assert not np.allclose(first["exit.1.adapter.weight"], np.eye(len(first["exit.1.adapter.weight"])), atol=1e-4)
    with pytest.raises(UsageError, match="the checkpoint has no exit"):
        run(tmp_path, **(rest | {"output": str(tmp_path / "no")}), exits={"start": "checkpoint", "at": [1, 2]})
    with pytest.raises(ValidationError, match="the same student"):
        run(tmp_path, exits={"start": "checkpoint"}, student={"kind": "layers", "count": 2})


def test_an_anchor_asks_about_prompts_alone(tmp_path: Path) -> None:
    losses = {"task": 0.0, "exits": None, "anchor": {"kl": 1.0, "ce": 0.5, "every": 2}}
    task, _ = open_task(DistillConfig.model_validate(distilling.config(tmp_path, losses=losses)), torch.device("cpu"))
    assert isinstance(task, Distillation)
    module, batch = task.module, task.data.train.batch([0, 1, 2])
    assert module.teacher is not None
    with torch.no_grad():
        module.backbone.model.model.layers[0].mlp.up_proj.weight.add_(0.05)
    batch.targets[:, :7] = IGNORED  # a prompt of eight tokens: places 0, 2, 4 and 6 are asked
    assert batch.anchored(2).nonzero()[:, 1].tolist() == [0, 2, 4, 6] * 3
    plan = StepPlan(task.config.losses, anchored=12)
    value, parts = module(batch, plan)
    ours, theirs = (m.logits(m(batch.ids, []).finished)[:, 0:7:2] for m in (module.backbone, module.teacher))
    kl = functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="sum") / 12
    ce = functional.cross_entropy(ours.flatten(0, 1), batch.ids[:, 1:8:2].flatten())
    assert float(kl) > 1e-4
    assert parts["anchor.kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert parts["anchor.ce"].item() == pytest.approx(ce.item(), rel=1e-4)
    assert value.item() == pytest.approx(kl.item() + 0.5 * ce.item(), rel=1e-4)
    value.backward()
    assert module.backbone.model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    with pytest.raises(ValidationError, match="needs a weight"):
        DistillConfig.model_validate(distilling.config(tmp_path, losses={"anchor": {"kl": 0.0}}))


@pytest.mark.parametrize(("anchor", "detached"), [(None, 3), ({"kl": 0.0, "ce": 1.0}, None)])
def test_an_anchor_reaches_the_layers_beyond_the_exits(tmp_path: Path, anchor: Any, detached: int | None) -> None:
    losses = {"task": 0.0, "exits": {"kl": 1.0}, "anchor": anchor}
    task, _ = open_task(DistillConfig.model_validate(distilling.config(tmp_path, losses=losses)), torch.device("cpu"))
    assert isinstance(task, Distillation)
    task.begin(0)
    assert task.module.backbone.detach_after == detached
