"""The loss against a float64 reference written apart from it, and its gradient against finite differences of that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from eecompile_training.policy.gates import Gates, Reference, action_log_prob
from eecompile_training.policy.loss import entropy, policy_loss

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # as train_file has it
CLIP, BETA, BONUS = 0.2, 0.7, 0.3


def gate_arrays(seed: int, hidden: int = 5, units: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (hidden, units), "b1": (units,), "w2": (units, 1), "b2": (1,)}
    return {part: rng.standard_normal(shape).astype(np.float32) for part, shape in shapes.items()}


def reference_loss(gate: dict[str, Any], x: Any, leave: Any, old: Any, ref: Any, advantage: Any) -> float:
    """Everything in numpy, from probabilities rather than logits."""
    z = np.tanh(x @ gate["w1"] + gate["b1"]) @ gate["w2"] + gate["b2"]
    p = 1 / (1 + np.exp(-z[:, 0]))
    taken = np.where(leave, p, 1 - p)
    ratio, total = taken / np.exp(old), 0.0
    for r, a, t, reference in zip(ratio, advantage, taken, np.exp(ref), strict=True):
        gain = min(r * a, min(max(r, 1 - CLIP), 1 + CLIP) * a)
        total += -gain + BETA * (reference / t - np.log(reference / t) - 1)
    return float(total - BONUS * -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum())


def cases() -> tuple[dict[str, Any], Any, Any, Any, Any, Any]:
    """Decisions whose ratios lie below, within and above the clip, under advantages of both signs."""
    rng, gate = np.random.default_rng(7), {k: v.astype(np.float64) for k, v in gate_arrays(1).items()}
    x, leave = rng.standard_normal((40, 5)), rng.random(40) < 0.5
    z = (np.tanh(x @ gate["w1"] + gate["b1"]) @ gate["w2"] + gate["b2"])[:, 0]
    new = np.log(np.where(leave, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))))
    old = new - rng.choice([-0.6, -0.1, 0.1, 0.6], 40)
    ref = np.minimum(new + rng.normal(0, 0.5, 40), -1e-3)
    return gate, x, leave, old, ref, rng.standard_normal(40)


def torch_loss(gates: Any, x: Any, leave: Any, old: Any, ref: Any, advantage: Any) -> Any:
    logits = gates.logits(0, torch.from_numpy(x))
    new = action_log_prob(logits, torch.from_numpy(leave))
    parts = (torch.from_numpy(values) for values in (old, ref, advantage))
    return (policy_loss(new, *parts, clip=CLIP, beta=BETA) - BONUS * entropy(logits)).sum()


def test_the_loss_is_the_references() -> None:
    gate, *given = cases()
    assert torch_loss(Gates({0: gate}), *given).item() == pytest.approx(reference_loss(gate, *given), rel=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    gate, *given = cases()
    gates = Gates({0: gate})
    torch_loss(gates, *given).backward()
    step, worst = 1e-6, 0.0
    for part, values in gate.items():
        found = gates.part(part, 0).grad.numpy()
        for place in np.ndindex(values.shape):
            moved = [{**gate, part: values.copy()} for _ in range(2)]
            moved[0][part][place] += step
            moved[1][part][place] -= step
            slope = (reference_loss(moved[0], *given) - reference_loss(moved[1], *given)) / (2 * step)
            worst = max(worst, abs(slope - found[place]) / (1 + abs(slope)))
    assert worst < 1e-7


def test_the_clip_stops_the_gradient_on_the_side_that_it_guards() -> None:
    new = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(4, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    policy_loss(new, nothing, nothing, advantage, clip=0.2, beta=0.0).sum().backward()
    assert (new.grad != 0).tolist() == [False, True, True, False]


def test_the_reference_is_the_softened_threshold_policy() -> None:
    gates, x = Gates({0: gate_arrays(1)}), torch.from_numpy(np.random.default_rng(0).standard_normal((9, 5)))
    confidence = torch.sigmoid(gates.logits(0, x)).detach().numpy()
    said = Reference(gates, {0: 0.6}, 0.1).log_prob(0, x, torch.ones(9, dtype=torch.bool)).numpy()
    assert np.exp(said) == pytest.approx(1 / (1 + np.exp(-(confidence - 0.6) / 0.1)))
    assert ((np.exp(said) > 0.5) == (confidence > 0.6)).all()
