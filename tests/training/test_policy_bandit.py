"""A world small enough that its best policy is known: the algorithm finds it from a bad start, and with the sign of the
advantage turned round it does not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from eecompile_training.policy import learner as learner_module
from eecompile_training.policy.advantage import advantages
from eecompile_training.policy.environment import Judged
from eecompile_training.policy.gates import Gates, Reference
from eecompile_training.policy.learner import Learner, Rules
from eecompile_training.policy.loop import Loop, Outcome, value
from eecompile_training.policy.ranks import Ranks
from eecompile_training.policy.records import Played
from eecompile_training.policy.settings import PolicyConfig
from eecompile_training.runs import open_run

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # as train_file has it
RIGHT = (True, False, True, True)  # whether the exit agrees, by state
DEBT = (0.0, 0.0, 0.9, 0.1)  # what leaving adds to the next token's cost: state 2 saves now and pays later
LEFT, FULL, WEIGHT, TOKENS = 0.4, 1.0, 0.6, 6
BAD = {  # leaves where it should not and stays where it should leave
    "w1": 2 * np.eye(4, dtype=np.float32), "b1": np.zeros(4, np.float32),
    "w2": np.array([[-2.0], [2.0], [2.0], [-2.0]], np.float32), "b2": np.zeros(1, np.float32),
}  # fmt: skip


def chances(gates: Any) -> Any:
    with torch.no_grad():
        return torch.sigmoid(gates.logits(0, torch.eye(4, dtype=torch.float64))).numpy()


def roll(states: Any, leave: Any, group: int = 0) -> Played:
    """The text goes on after the last token: what that leaves behind is paid."""
    count = len(states)
    right = np.array([not out or RIGHT[s] for s, out in zip(states, leave, strict=True)])
    cost = np.where(leave, LEFT, FULL)
    debt = np.array([DEBT[s] if out else 0.0 for s, out in zip(states, leave, strict=True)])
    cost[1:] += debt[:-1]
    cost[-1] += debt[-1]
    at = np.arange(count)
    return Played(
        group, right / count, cost / count, at, np.zeros(count, np.int64), np.array(leave),
        np.eye(4, dtype=np.float32)[states], np.zeros(count),
    )  # fmt: skip


class World:
    """Six groups of eight a step; a group shares its states."""

    def play(self, step: int, gates: Any) -> list[Played]:
        p, found = chances(gates), []
        for group in range(6):
            rng = np.random.default_rng([step, group])
            states = rng.integers(0, 4, TOKENS)
            found += [roll(states, rng.random(TOKENS) < p[states], group) for _ in range(8)]
        return found

    def judge(self, gates: Any) -> Judged:
        return judged(tuple(chances(gates) > 0.5))


def judged(policy: tuple[bool, ...]) -> Judged:
    states = np.tile(np.arange(4), 8)
    one = roll(states, np.array(policy)[states])
    return Judged(float(one.quality.sum()), float(one.cost.sum()), 0.0, 0.0)


def best_policy() -> tuple[bool, ...]:
    return max(itertools.product([False, True], repeat=4), key=lambda policy: value(judged(policy), WEIGHT))


def trained(folder: Path, steps: int = 40, **guards: Any) -> tuple[Any, Outcome]:
    fields = {"bundle": "none", "output": str(folder), "data": {"files": ["none"]}, "steps": steps}
    rest = {"reward": {"weight": WEIGHT, "ramp": 0}, "guards": guards, "evaluate_every": 5}
    config = PolicyConfig.model_validate({**fields, **rest})
    rules = Rules(
        rate=0.05, clip=0.2, beta=0.01, bonus=0.001, norm=1.0, epochs=4, minibatches=2, scaling="batch", seed=3
    )
    gates = Gates({0: BAD})
    learner = Learner(gates, Reference(Gates({0: BAD}), {0: 0.5}, 1.0), rules, Ranks())
    run = open_run(folder, config, {}, seeds={}, resume=False)
    return gates, Loop(config, learner, World(), run, Ranks()).train()


def test_the_optimum_is_what_reward_to_go_is_needed_for() -> None:
    """State 2 agrees and is cheaper at once; only what follows tells that leaving there does not pay."""
    assert best_policy() == (True, False, False, True)


def test_the_known_optimum_is_found_from_a_bad_start(tmp_path: Path) -> None:
    assert (chances(Gates({0: BAD})) > 0.5).tolist() == [False, True, True, False]
    gates, outcome = trained(tmp_path / "run")
    assert tuple(chances(gates) > 0.5) == best_policy()
    assert outcome.best_reward == pytest.approx(value(judged(best_policy()), WEIGHT))


def test_with_the_sign_turned_round_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(*given: Any) -> Any:
        return [None if a is None else -a for a in advantages(*given)]

    monkeypatch.setattr(learner_module, "advantages", turned)
    gates, outcome = trained(tmp_path / "run", quality=0.0)
    assert tuple(chances(gates) > 0.5) != best_policy()
    assert outcome.best_reward < value(judged(best_policy()), WEIGHT) - 0.1


def test_a_collapse_stops_training_with_a_reason_and_keeps_the_best(tmp_path: Path) -> None:
    _, outcome = trained(tmp_path / "run", quality=0.999, patience=3)
    assert outcome.steps == 3
    assert outcome.stopped is not None
    assert "reward.weight" in outcome.stopped
    assert outcome.best_step == 0
    assert np.array_equal(outcome.best["w2_0"].numpy(), BAD["w2"].astype(np.float64))


def test_gates_that_do_not_explore_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "play", lambda self, step, gates: [roll([0, 1], [True, False], g % 2) for g in range(4)])
    _, outcome = trained(tmp_path / "run", patience=4)
    assert outcome.steps == 4
    assert outcome.stopped is not None
    assert "explore" in outcome.stopped
