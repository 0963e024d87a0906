"""The loop of `train policy`: play, learn, judge, keep the best, until the steps are done or a guard stops it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eecompile_training.policy.environment import Environment, Judged
from eecompile_training.policy.guards import CollapseGuard, cost_weight
from eecompile_training.policy.learner import Learner
from eecompile_training.policy.ranks import Ranks
from eecompile_training.policy.records import Played
from eecompile_training.policy.settings import PolicyConfig
from eecompile_training.runs import Run

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What training came to. best: the gates' tensors where they did best as the rule that ships, and after how many
    steps, by the validation's Q - weight * C / C_full. stopped: why it ended early, or None."""

    best: dict[str, Tensor]
    best_step: int
    best_reward: float
    steps: int
    stopped: str | None


class Loop:
    """Trains the gates of a learner. State is saved to the run's folder and taken up from there."""

    def __init__(
        self, config: PolicyConfig, learner: Learner, environment: Environment, run: Run, ranks: Ranks
    ) -> None:  # fmt: skip
        self._config, self._learner, self._environment = config, learner, environment
        self._run, self._ranks, self._guard = run, ranks, CollapseGuard(config.guards)
        self._best, self._best_step, self._best_reward = _copied(learner), 0, -math.inf

    def train(self, progress: Progress = lambda stage: None) -> Outcome:
        """Train from the run's last checkpoint, or from the beginning. Raises as rollouts do."""
        done, state = self._run.latest()
        self._run.rewind(done)
        if state is not None:
            self._restore(state)
        else:
            self._judge(0)
        stopped = None
        for step in range(done, self._config.steps):
            progress(f"step {step + 1} of {self._config.steps}, best reward {self._best_reward:.4f}")
            stopped = self._step(step)
            done = step + 1
            if stopped is not None:
                break
            if done % self._config.evaluate_every == 0 or done == self._config.steps:
                self._judge(done)
            if done % self._config.checkpoint_every == 0:
                self._run.save(done, self._state())
        return Outcome(self._best, self._best_step, self._best_reward, done, stopped)

    def _step(self, step: int) -> str | None:
        """Play and learn; why to stop, or None."""
        reward = self._config.reward
        weight = cost_weight(reward.weight, reward.ramp, step)
        played = self._environment.play(step, self._learner.gates)
        found = self._ranks.gather([_summary(one) for one in played])
        learned = self._learner.learn(step, played, weight)
        means = _means(found)
        self._run.log(step + 1, {"weight": weight, **means, **learned})
        finite = all(bool(torch.isfinite(p).all()) for p in self._learner.gates.parameters())
        return self._guard.check(means["quality"], learned["skipped"], finite=finite)

    def _judge(self, done: int) -> None:
        judged = self._environment.judge(self._learner.gates)
        reward = value(judged, self._config.reward.weight)
        self._run.log(done, {f"validation.{name}": x for name, x in {**asdict(judged), "reward": reward}.items()})
        if reward > self._best_reward:
            self._best, self._best_step, self._best_reward = _copied(self._learner), done, reward

    def _state(self) -> dict[str, Any]:
        return {
            "gates": self._learner.gates.state_dict(), "optimiser": self._learner.optimiser.state_dict(),
            "best": self._best, "best_step": self._best_step, "best_reward": self._best_reward,
            "guard": {"low": self._guard.low, "still": self._guard.still},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._learner.gates.load_state_dict(state["gates"])
        self._learner.optimiser.load_state_dict(state["optimiser"])
        self._best, self._best_step, self._best_reward = state["best"], state["best_step"], state["best_reward"]
        self._guard.low, self._guard.still = state["guard"]["low"], state["guard"]["still"]


def value(judged: Judged, weight: float) -> float:
    """Q - weight * C / C_full."""
    return judged.quality - weight * judged.cost


def _copied(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.gates.state_dict().items()}


def _summary(one: Played) -> tuple[float, float, float, float]:
    """Q, C / C_full, decisions to leave, decisions."""
    return float(one.quality.sum()), float(one.cost.sum()), float(one.leave.sum()), float(len(one.leave))


def _means(found: Sequence[tuple[float, float, float, float]]) -> dict[str, float]:
    quality, cost, left, decided = (float(column) for column in np.sum(found or [(0.0,) * 4], axis=0))
    count = max(1, len(found))
    return {"quality": quality / count, "cost": cost / count, "left": left / max(1.0, decided)}
