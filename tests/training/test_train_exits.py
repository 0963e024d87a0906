"""`train exits` on tiny models: every kind of exit and gate, students that a build takes, never worse than fitted."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder as te
import yaml
from click.testing import CliRunner

pytest.importorskip("transformers")
import torch
from eecompile_training import rows
from eecompile_training.classifier_task import coverage
from eecompile_training.exit_task import kl_loss
from eecompile_training.rows import draw, rate_at
from eecompile_training.settings import OptimConfig
from eecompile_training.train_exits import train_file

from eecompile.calibrate.exits import fit_exits
from eecompile.cli import main
from eecompile.errors import UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle
from eecompile.student.exits import load_exits
from eecompile.student.loops import Loops

pytestmark = pytest.mark.torch
AT = [1, 3]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose early layers know much, with documents beside it."""
    path = tiny.checkpoint(tmp_path_factory.mktemp("exits") / "checkpoint", gain=0.25)
    write_documents(path.parent / "documents.jsonl")
    return path


def write_documents(path: Path, count: int = 140, length: int = 24) -> Path:
    rng = np.random.default_rng(0)
    ids = (rng.integers(0, 9, (count, length)).cumsum(axis=1) + rng.integers(0, 128, (count, 1))) % tiny.VOCAB
    path.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in ids))
    return path


def config(source: Path, out: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(source), "output": str(out), "data": {"file": str(source.parent / "documents.jsonl")}, "at": AT,
        "steps": 40, "batch": 64, "calibration": {"risk": 0.3}, "gate_rows": 400, "log_every": 10,
        "evaluate_every": 20, "checkpoint_every": 10, "shortlist": 40, "rank": 6,
        "cache_folder": str(source.parent / "cache"),
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


@pytest.fixture(scope="module")
def whole(source: Path) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted, and its summary."""
    out = source.parent / "whole"
    return out, train_file(config(source, out))


def test_trained_exits_ship_calibrated_and_no_worse_than_the_fit(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, summary = whole
    schema = load_exits(run / "student").schema
    assert [(e.layer, e.adapter, e.gates) for e in schema.exits] == [(n, "affine", ["learned", "max_prob"]) for n in AT]
    [result] = schema.calibrations
    assert result.chosen is not None
    bundle = tiny.bundle_at(tmp_path / "bundle", run / "student", precision="fp32")
    opened = Bundle.open(bundle)
    assert opened.files.policy.exits[-1].confident is not None, "the build takes the calibration"
    for exit_ in summary["exits"]:
        kept, began = exit_[exit_["is"]], exit_["closed form"]
        assert (kept["agreement"], -kept["kl"]) >= (began["agreement"], -began["kl"])
        # what was judged on cached states is what the bundle's own trace of the path documents says
        assert exit_["agreement"] == pytest.approx(kept["agreement"], abs=0.01)
    assert any(exit_["is"] == "trained" for exit_ in summary["exits"])
    plots = {path.name for path in (run / "plots").iterdir()}
    assert plots == {"losses.png", "agreement.png", "coverage.png", "kl.png"}
    assert not (run / "work").exists()
    assert sum(e["trained"]["kl"] for e in summary["exits"]) < sum(e["closed form"]["kl"] for e in summary["exits"])


def test_the_start_is_what_the_closed_form_fits(source: Path, tmp_path: Path) -> None:
    """With no steps the student is as `eecompile exits --fit` would make it of the documents that exits learn from."""
    summary = train_file(config(source, tmp_path / "run", steps=0))
    fit_exits(source, AT, source.parent / "documents.jsonl", tmp_path / "fit", risk=0.3, build_bundle=build_plain)
    assert [e["is"] for e in summary["exits"]] == ["closed form", "closed form"]
    ours, theirs = (load_exits(path) for path in (tmp_path / "run" / "student", tmp_path / "fit"))
    for layer in AT:
        a, b = (found.tensor(layer, "adapter.weight") for found in (ours, theirs))
        assert np.linalg.norm(a - b) < 0.35 * np.linalg.norm(b - np.eye(len(b)))  # of three quarters of the documents


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (
            {"adapter": "mlp", "head": "low_rank", "gates": ["max_prob"]},
            {"exit.1.mlp.up_proj.weight", "head.low_rank.up"},
        ),
        ({"adapter": "layer", "batch": 4, "gates": ["learned"]}, {"exit.3.self_attn.q_proj.weight", "exit.3.gate.w1"}),
        (
            {"head": "shortlist", "gates": ["predictor", "router"], "target": "ce"},
            {"exit.1.router.w2", "exit.3.predictor.w1"},
        ),
        ({"adapter": "norm", "head": "low_rank", "gates": ["entropy"], "cache": "float32"}, {"head.low_rank.down"}),
    ],
    ids=["mlp", "layer", "shortlist", "norm"],
)
def test_every_kind_of_exit_trains_and_runs(
    source: Path, tmp_path: Path, changes: dict[str, Any], kinds: set[str]
) -> None:
    summary = train_file(config(source, tmp_path / "run", **changes))
    student = tmp_path / "run" / "student"
    assert kinds <= set(load_exits(student).store.tensors)  # type: ignore[union-attr]
    opened = Bundle.open(tiny.bundle_at(tmp_path / "bundle", student, precision="fp32"))
    full = tiny.tokens(opened, [5, 6, 7], 12)
    assert tiny.tokens(opened, [5, 6, 7], 12, mode="exact") == full
    for exit_ in summary["exits"]:
        assert exit_["agreement"] == pytest.approx(exit_[exit_["is"]]["agreement"], abs=0.02)


def test_a_recursive_student_keeps_its_schedule(source: Path, tmp_path: Path) -> None:
    loops = Loops(prelude=1, block=1, loops=2, rank=2, projections=["q"])
    looped = tiny.checkpoint(tmp_path / "looped", tiny.config(num_hidden_layers=3), gain=0.25)
    tiny.add_exits(looped, [], loops=loops, gain=0.25)
    shutil.copy(source.parent / "documents.jsonl", tmp_path)
    summary = train_file(config(looped, tmp_path / "run", at=[2]))
    assert load_exits(tmp_path / "run" / "student").schema.schedule == loops
    [exit_] = summary["exits"]
    assert exit_["agreement"] == pytest.approx(exit_[exit_["is"]]["agreement"], abs=0.02)


def test_an_exit_goes_on_from_the_students_own(source: Path, tmp_path: Path) -> None:
    train_file(config(source, tmp_path / "first"))
    shutil.copy(source.parent / "documents.jsonl", tmp_path / "first")
    second = train_file(config(tmp_path / "first" / "student", tmp_path / "second", at=[1, 2], steps=0))
    assert [e["is"] for e in second["exits"]] == ["the student's own", "closed form"]
    before, after = (
        load_exits(tmp_path / name / "student").tensor(1, "adapter.weight") for name in ("first", "second")
    )
    np.testing.assert_array_equal(before, after)


class Killed(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("after", [3, 15, 40])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    source: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    steps, step = [0], rows._step

    def dying(*given: Any) -> Any:
        steps[0] += 1
        if steps[0] > after:
            raise Killed
        return step(*given)

    broken = config(source, tmp_path / "broken")
    if after < 40:
        monkeypatch.setattr(rows, "_step", dying)
    else:
        monkeypatch.setattr("eecompile_training.train_decoder._write", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train_file(broken)
    monkeypatch.undo()
    train_file(broken, resume=True)
    for name in ("metrics.jsonl", "student/early_exit.json", "student/early_exit.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_the_states_are_computed_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    train_file(config(source, tmp_path / "a", cache_folder=str(folder), steps=1))
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr("eecompile_training.exit_states._fill", lambda *_: pytest.fail("computed again"))
    train_file(config(source, tmp_path / "b", cache_folder=str(folder), steps=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at": [4]}, "exit 4 is not before the last of 4 layers"),
        ({"at": [3, 1]}, "shallow first"),
        ({"adapter": "classifier"}, "classifiers at exits are for encoders"),
        ({"gates": ["delta"]}, "there is no gate 'delta'"),
        ({"stepz": 3}, "stepz: there is no such key"),
    ],
)
def test_what_cannot_be_trained(source: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_file(config(source, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["exits", "recurse", "lm"])
def test_the_commands_refuse_what_they_do_not_know(tmp_path: Path, verb: str) -> None:
    (tmp_path / "run.yaml").write_text("model: a\noutput: b\ndata: {filez: []}\n")
    said = CliRunner().invoke(main, ["train", verb, str(tmp_path / "run.yaml")])
    assert said.exit_code == 2
    assert "run.yaml, line 3" in said.stderr


def test_kl_by_hand() -> None:
    rng = np.random.default_rng(0)
    z, full, t = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)), 2.0
    p, q = (np.exp(x / t) / np.exp(x / t).sum(1, keepdims=True) for x in (full, z))
    expected = t * t * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    assert float(kl_loss(torch.tensor(z), torch.tensor(full), t)) == pytest.approx(expected, rel=1e-12)


def test_coverage_counts_the_surest_rows() -> None:
    right = np.ones(100, np.bool_)
    right[[70, 71]] = False
    sure = np.linspace(1, 0, 100).astype(np.float32)
    assert coverage(sure, right) == 0.7  # all of 70 are right, 70 of 71 and 98 of 100 are not enough
    right[71] = True
    assert coverage(sure, right) == 1.0  # 99 of 100
    assert coverage(np.zeros(100, np.float32), right) == 1.0, "tied rows stand together"
    right[:2] = False
    assert coverage(sure, right) == 0.0


def test_draws_and_rates_depend_on_the_step_alone() -> None:
    assert draw(9, 5, 1, 2).tolist() == draw(9, 5, 1, 2).tolist() != draw(9, 5, 1, 3).tolist()
    optim = OptimConfig(warmup=10, floor=0.1)
    assert rate_at(optim, 0, 110) == 0.1
    assert rate_at(optim, 60, 110) == pytest.approx(0.55)
    assert rate_at(OptimConfig(schedule="linear"), 25, 100) == 0.75


TEXTS = te.TEXT.split()[:14]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    for task in te.TASKS:
        te.add_tokenizer(te.checkpoint(root / task, te.config("bert", task), gain=0.3))
    rng = np.random.default_rng(1)
    lines = [{"text": " ".join(rng.choice(TEXTS, rng.integers(3, 12)))} for _ in range(260)]
    (root / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.mark.parametrize("task", te.TASKS)
@pytest.mark.parametrize("pooler", [False, True])
def test_an_encoders_exits(encoders: Path, tmp_path: Path, task: str, pooler: bool) -> None:
    changes = {"pooler": pooler, "steps": 150, "at": [1, 2, 3]}
    asked = config(encoders / task, tmp_path / "run", **changes)
    if pooler and task == "tokens":
        with pytest.raises(UsageError, match="has no pooler"):
            train_file(asked)
        return
    summary = train_file(asked)
    for exit_ in summary["exits"]:
        kept, began = exit_[exit_["is"]], exit_["closed form"]
        assert (kept["agreement"], -kept["kl"]) >= (began["agreement"], -began["kl"])
    found = load_exits(tmp_path / "run" / "student")
    assert len(found.schema.calibrations) == 1
    assert all(e.adapter == "classifier" for e in found.schema.exits)
    te.open_bundle(tmp_path / "bundle", tmp_path / "run" / "student").classifier("full").classify(["the cat sat"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": ["learned"]}, "which a token-classification cannot have"),
        ({"head": "low_rank"}, "classifiers of their own"),
        ({"target": "ce"}, "learn from the last layer alone"),
        ({"data": {"file": "DOCUMENTS", "limit": 12}}, "are for testing"),
    ],
)
def test_what_an_encoder_cannot_have(encoders: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if "data" in changes:
        changes = {"data": {**changes["data"], "file": str(encoders / "documents.jsonl")}}
    with pytest.raises(UsageError, match=message):
        train_file(config(encoders / "tokens", tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
