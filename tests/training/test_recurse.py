"""`train recurse` on tiny models, and Mixture-of-Recursions' formulas by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml

pytest.importorskip("transformers")
import torch
from eecompile_training import loop
from eecompile_training.mor import balance_loss, capacity, expert_choice, row_balance, stops, taken_loss, weighted
from eecompile_training.recurse import train_file
from processes import run_in_two
from safetensors.numpy import load_file

from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.student.exits import load_exits

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, with documents beside them."""
    path = tiny.checkpoint(
        tmp_path_factory.mktemp("recurse") / "checkpoint", tiny.config(num_hidden_layers=6), gain=0.3
    )
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 9, (60, 24)).cumsum(axis=1) + rng.integers(0, 128, (60, 1))) % tiny.VOCAB
    (path.parent / "documents.jsonl").write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
    return path


def config(source: Path, out: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(source), "output": str(out), "steps": 8, "batch": 4, "log_every": 1, "evaluate_every": 8,
        "data": {"files": [str(source.parent / "documents.jsonl")], "length": 16}, "checkpoint_every": 3,
        "schedule": {"prelude": 1, "block": 2, "loops": 2, "rank": 2, "projections": ["q", "down"]},
        "exits": {"at": [3], "adapter": "norm"}, "optimizer": {"lr": 3e-3, "schedule": "constant"},
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_uptraining_brings_the_tied_model_back(source: Path, tmp_path: Path) -> None:
    train_file(config(source, tmp_path / "run", steps=40))
    losses = [line["last.kl"] for line in lines(tmp_path / "run") if "last.kl" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    student = tmp_path / "run" / "student"
    schema = load_exits(student).schema
    assert schema.schedule is not None
    assert (schema.schedule.loops, [e.layer for e in schema.exits]) == (2, [3])
    opened = Bundle.open(tiny.bundle_at(tmp_path / "bundle", student, precision="fp32"))
    assert tiny.tokens(opened, [1, 2, 3], 10, mode="exact") == tiny.tokens(opened, [1, 2, 3], 10)
    assert sorted(p.name for p in (tmp_path / "run" / "plots").iterdir())[-1] == "losses.png"
    assert not (tmp_path / "run" / "tied").exists()


ROUTED: dict[str, Any] = {
    "schedule": {"prelude": 0, "block": 2, "loops": 3}, "exits": {"at": [2, 4], "adapter": "norm", "gates": ["router"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_routers_learn_and_decide_in_the_bundle_as_in_training(source: Path, tmp_path: Path, kind: str) -> None:
    changes = {**ROUTED, "router": {"kind": kind, "units": 3 if kind == "token_choice" else 0, "alpha": 1.0}}
    summary = train_file(config(source, tmp_path / "run", steps=12, **changes))
    assert 1 <= summary["router.loops"] <= 3
    found = load_exits(tmp_path / "run" / "student")
    exits = found.schema.exits
    assert [e.router is not None for e in exits] == [True, kind == "expert_choice"]
    assert np.abs(found.tensor(2, "router.w2")).max() > 0, "the router has a gradient"
    opened = tiny.open_bundle(tmp_path / "bundle", tmp_path / "run" / "student", precision="fp32")
    from eecompile.runtime.trace import Tracer

    trace = Tracer(opened, boundaries=True).trace([5, 9, 2, 77, 31, 8, 64, 3])
    assert trace.boundaries is not None
    for g, said in enumerate(trace.exits):
        source_exit = exits[g if kind == "expert_choice" else 0]
        rows = trace.boundaries[g if kind == "expert_choice" else 0].astype(np.float64)
        parts = {p: t.astype(np.float64) for p, t in (found.gate(source_exit, "router") or {}).items()}
        if "w1" in parts:
            rows = rows @ parts["w1"] + parts["b1"]
            rows = rows * 0.5 * (1 + np.vectorize(math.erf)(rows / math.sqrt(2)))
        logits = rows @ parts["w2"] + parts["b2"]
        depth = g if kind == "token_choice" else 0
        score = logits[:, : depth + 1].max(1) - logits[:, depth + 1 :].max(1)
        np.testing.assert_allclose(said.more["router"], 1 / (1 + np.exp(-score)), atol=1e-4)


class Killed(Exception):
    """In place of a kill."""


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**ROUTED, "router": {"warmup": 5}}
    train_file(config(source, tmp_path / "whole", **changes))
    report = loop.Loop._report

    def dying(self: Any, step: int, *rest: Any) -> None:
        report(self, step, *rest)
        if step == 5:
            raise Killed

    broken = config(source, tmp_path / "broken", **changes)
    monkeypatch.setattr(loop.Loop, "_report", dying)
    with pytest.raises(Killed):
        train_file(broken)
    monkeypatch.undo()
    train_file(broken, resume=True)
    names = ("metrics.jsonl", "student/early_exit.safetensors", "student/model.safetensors")
    for name in names:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


SPLIT: dict[str, dict[str, Any]] = {
    "plain": {},
    "expert_choice": {**ROUTED, "router": {"warmup": 3}},
    "token_choice": {**ROUTED, "router": {"kind": "token_choice", "units": 3}},
}


def test_two_processes_and_rows_in_turn_come_to_what_one_process_comes_to(source: Path, tmp_path: Path) -> None:
    short = {"steps": 5, "evaluate_every": 5}
    for name, changes in SPLIT.items():
        train_file(config(source, tmp_path / name, **short, **changes))
        train_file(config(source, tmp_path / f"{name}-turns", **short, **changes, micro=1))
    run_in_two("recurse", *(config(source, tmp_path / f"{name}-two", **short, **SPLIT[name]) for name in SPLIT))
    for name, other in ((name, f"{name}-{how}") for name in SPLIT for how in ("turns", "two")):
        for file in ("model.safetensors", "early_exit.safetensors"):
            one, two = (load_file(tmp_path / run / "student" / file) for run in (name, other))
            for tensor in one:
                np.testing.assert_allclose(one[tensor], two[tensor], rtol=1e-4, atol=1e-5, err_msg=f"{other} {tensor}")
        for a, b in zip(lines(tmp_path / name), lines(tmp_path / other), strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"prelude": 0, "block": 4, "loops": 2}}, "the checkpoint has 6"),
        ({**ROUTED, "exits": {"at": [2], "gates": ["router"]}, "router": {}}, "exits are at"),
        ({"exits": {"at": [3], "gates": ["router"]}}, "needs a section `router`"),
        ({"student": {"kind": "layers", "count": 2}}, "tied layers"),
    ],
)
def test_what_cannot_be_tied_and_trained(source: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_file(config(source, tmp_path / "run", **changes))


def test_capacities_by_hand() -> None:
    assert [capacity(n, 3) for n in range(3)] == [1, 2 / 3, 1 / 3]
    assert capacity(2, 3, step=0, warmup=10) == 1
    assert capacity(2, 3, step=5, warmup=10) == pytest.approx(1 / 3 + (2 / 3) / 2)
    assert capacity(2, 3, step=10, warmup=10) == 1 / 3


def test_expert_choice_takes_the_best_of_those_that_went_on() -> None:
    score = torch.tensor([[0.3, 0.9, 0.1, 0.8, 0.7, 9.0], [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]])
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    second = expert_choice(score, real, real, 2 / 3)  # ceil(10/3) = 4 of five, 2 of three
    assert second.int().tolist() == [[1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    third = expert_choice(-score, second, real, 1 / 3)  # of those alone: 2 and 1
    assert third.int().tolist() == [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert stops([second, third], real).tolist() == [[3, 2, 1, 2, 3, 0], [3, 2, 1, 0, 0, 0]]


def test_the_routers_losses_by_hand() -> None:
    rng = np.random.default_rng(0)
    score, taken, allowed = rng.standard_normal((2, 5)), rng.random((2, 5)) > 0.5, rng.random((2, 5)) > 0.3
    p = 1 / (1 + np.exp(-score))
    expected = -np.sum(np.where(taken, np.log(p), np.log(1 - p))[allowed]) / 7
    found = taken_loss(torch.tensor(score), torch.tensor(taken), torch.tensor(allowed), 7)
    assert float(found) == pytest.approx(expected, rel=1e-12)

    logits = rng.standard_normal((9, 3))
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    f = np.bincount(logits.argmax(1), minlength=3) / 9
    assert float(balance_loss(torch.tensor(logits))) == pytest.approx(3 * np.sum(f * q.mean(0)), rel=1e-12)
    assert float(balance_loss(torch.zeros(3, 3) + 9 * torch.eye(3))) == pytest.approx(1.0)

    rows, real = rng.standard_normal((2, 4, 3)), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    expected = sum(n * float(balance_loss(torch.tensor(row[:n]))) for row, n in zip(rows, (3, 2), strict=True))
    assert float(row_balance(torch.tensor(rows), real)) == pytest.approx(expected, rel=1e-12)


def test_a_weight_of_one_has_the_gradient_of_the_routers() -> None:
    """d loss / d weight = <d loss / d after, after - before>, as of before + weight (after - before)."""
    rng = np.random.default_rng(0)
    after, before, slope = (torch.tensor(rng.standard_normal((2, 3, 4))) for _ in range(3))
    weight = torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)
    taken = torch.tensor([[True, False, True], [True, True, False]])
    out = weighted(after, before, weight, taken)
    assert torch.equal(out, after)
    (out * slope).sum().backward()
    expected = ((after - before) * slope).sum(-1) * taken
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-12)
