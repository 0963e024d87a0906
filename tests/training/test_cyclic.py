"""Cyclic gates: Sinkhorn's distance and the gate's loss by hand, and a tiny model trained to a student that cycles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml

pytest.importorskip("transformers")
import torch
from eecompile_training.backbone import open_backbone
from eecompile_training.cyclic import cycle_loss, gate_target, sinkhorn_distance
from eecompile_training.cycling import Cycling, TrainedCycle
from eecompile_training.recurse import train_file

from eecompile.runtime import Bundle
from eecompile.student.cycles import Cycle, CycleSpec
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch


def by_hand(ours: Any, theirs: Any, epsilon: float = 0.05, iterations: int = 5) -> float:
    """Sinkhorn's scalings, outside of log space."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, theirs))
    cost = 1 - a @ b.T
    kernel, v = np.exp(-cost / epsilon), np.ones(len(b))
    for _ in range(iterations):
        u = (1 / len(a)) / (kernel @ v)
        v = (1 / len(b)) / (kernel.T @ u)
    return float(np.sum(u[:, None] * kernel * v[None, :] * cost))


def test_the_distance_by_hand() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 6, 5)), rng.standard_normal((2, 6, 5))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = sinkhorn_distance(torch.tensor(ours), torch.tensor(theirs), mask)
    expected = [by_hand(ours[0], theirs[0]), by_hand(ours[1, :4], theirs[1, :4])]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_distance_does_not_grow_with_the_tokens() -> None:
    """Uniform marginals: a row twice over is as far as the row."""
    rng = np.random.default_rng(1)
    ours, theirs = (torch.tensor(rng.standard_normal((1, 6, 5))) for _ in range(2))
    once = sinkhorn_distance(ours, theirs, torch.ones(1, 6, dtype=torch.bool))
    twice = sinkhorn_distance(ours.repeat(1, 2, 1), theirs.repeat(1, 2, 1), torch.ones(1, 12, dtype=torch.bool))
    assert float(twice) == pytest.approx(float(once), rel=1e-9)
    same = sinkhorn_distance(ours, ours, torch.ones(1, 6, dtype=torch.bool))
    assert float(same) < float(once) / 5
    assert float(gate_target(same)) > float(gate_target(once))


def test_the_gates_loss_by_hand() -> None:
    rng = np.random.default_rng(2)
    gate, distance = torch.tensor(rng.random((2, 4)), requires_grad=True), torch.tensor([0.3, 0.8], requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = cycle_loss(gate, distance.double(), mask)
    values = gate.detach().numpy()
    rows = [np.mean((values[0] - np.exp(-0.21)) ** 2) + 0.15, np.mean((values[1, :2] - np.exp(-0.56)) ** 2) + 0.4]
    assert found.item() == pytest.approx(sum(rows), rel=1e-6)
    found.backward()
    np.testing.assert_allclose(distance.grad, [0.5, 0.5])  # the target has no gradient


def test_trained_gates_and_vectors_are_the_students(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint", gain=0.3)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, tiny.VOCAB, (40, 16))
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
    values = {
        "model": str(source), "output": str(tmp_path / "run"), "data": {"files": [str(documents)], "length": 12},
        "cycles": [{"first": 1, "layer": 2, "teacher_layer": 3, "threshold": 0.6}], "steps": 60, "batch": 4,
        "log_every": 1, "optimizer": {"lr": 0.05, "schedule": "constant", "weight_decay": 0.0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    train_file(tmp_path / "config.yaml")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    first, last = (
        {k: np.mean([line[k] for line in part]) for k in ("loss", "cycle_2.again", "cycle_2.once", "cycle_2.gate_once")}
        for part in (lines[:5], lines[-5:])
    )
    assert last["loss"] < first["loss"]
    assert last["cycle_2.again"] < first["cycle_2.again"], "the vector brings the second run nearer"
    wanted = np.exp(-0.7 * last["cycle_2.once"])
    assert abs(last["cycle_2.gate_once"] - wanted) < abs(first["cycle_2.gate_once"] - wanted)
    student = open_student(tmp_path / "run" / "student")
    [cycle] = student.cycles
    assert (cycle.spec.first, cycle.spec.layer, cycle.spec.threshold) == (1, 2, 0.6)
    assert np.abs(cycle.think).max() > 0
    opened = Bundle.open(tiny.bundle_at(tmp_path / "bundle", tmp_path / "run" / "student", precision="fp32"))
    assert len(tiny.tokens(opened, [1, 2, 3], 6)) == 6


def test_the_second_run_is_what_the_reference_computes(tmp_path: Path) -> None:
    """Every row below its threshold, and the teacher far: numpy's own cyclic model against the twin's second run."""
    source = tiny.checkpoint(tmp_path / "checkpoint", gain=0.3)
    backbone = open_backbone(source)
    spec = TrainedCycle(first=1, layer=3, teacher_layer=4)
    module = Cycling(backbone, open_backbone(source), [spec])
    think = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    with torch.no_grad():
        module.tensor(spec, "think").copy_(torch.from_numpy(think))
        ids = torch.tensor([[5, 9, 2]])
        once = backbone(ids, [3]).hidden[3]
        again = module._again(spec, once + module.tensor(spec, "think"), dict(module._given))
    cycle = Cycle(CycleSpec(first=1, layer=3, threshold=1.0), think, np.zeros(32, np.float32), np.zeros(1, np.float32))
    student = open_student(source)
    first_row = ReferenceModel(student.spec, student.store, [cycle]).run([5], [3])[0][3]
    np.testing.assert_allclose(again[0, :1].numpy(), first_row, rtol=1e-4, atol=1e-4)
