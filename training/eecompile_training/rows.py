"""Training on cached rows: the loop that exits and gates share.

What a step draws depends on (seed, step) alone, and a checkpoint has all that changes, so that a run that was killed
goes on as if it had not been.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eecompile.errors import NumericError
from eecompile_training.plots import plot_run
from eecompile_training.runs import Run
from eecompile_training.settings import OptimConfig

Progress = Callable[[str], None]
Ints = NDArray[np.int64]


class RowTask(Protocol):
    """What is trained, and on how many units (rows or documents) there are to draw from."""

    name: str
    units: int

    @property
    def modules(self) -> nn.Module:
        """Everything that is trained."""

    def losses(self, units: Ints) -> Mapping[str, Tensor]:
        """The losses of a step on units of these numbers, by name; their sum is minimised."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures on rows that are not trained on."""


@dataclass(frozen=True)
class Pace:
    """steps, `batch` units each, and how often something is said or kept."""

    steps: int
    batch: int
    seed: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int


class Trainer:
    """Trains one task after another in a run; their steps are counted on. What a checkpoint says is done, is done."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run, self._progress, self._first = run, progress, 0
        self._step, self._state = run.latest()
        self._finished: dict[str, Any] = dict(self._state["finished"]) if self._state is not None else {}
        run.rewind(self._step)

    def train(self, task: RowTask, pace: Pace, optim: OptimConfig) -> None:
        """Train `task` in place. Raises NumericError where a loss is not finite."""
        if task.name in self._finished:
            task.modules.load_state_dict(self._finished[task.name])
        else:
            self._train(task, pace, optim)
            self._finished[task.name] = copy.deepcopy(task.modules.state_dict())
        self._first += pace.steps

    def _train(self, task: RowTask, pace: Pace, optim: OptimConfig) -> None:
        optimizer = torch.optim.AdamW(
            task.modules.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        done = self._restore(task, optimizer)
        if not any(line.get("task") == task.name for line in self._run.read_metrics()):
            self._log(task, 0, task.evaluate())
        began = time.perf_counter()
        for step in range(done, pace.steps):
            for group in optimizer.param_groups:
                group["lr"] = optim.lr * rate_at(optim, step, pace.steps)
            losses = _step(task, optimizer, draw(task.units, pace.batch, pace.seed, step), optim.clip)
            number, last = step + 1, step + 1 == pace.steps
            if number % pace.log_every == 0 or last:
                total = sum(losses.values())
                self._progress(f"{task.name}: step {number} of {pace.steps}, loss {total:.4f}")
                self._log(task, number, {"loss": total, **losses})
                self._run.time(self._first + number, {"seconds": time.perf_counter() - began})
            if number % pace.evaluate_every == 0 or last:
                self._log(task, number, task.evaluate())
            if number % pace.checkpoint_every == 0 or last:
                self._save(task, optimizer, number)

    def _log(self, task: RowTask, number: int, values: Mapping[str, float]) -> None:
        self._run.log(self._first + number, {"task": task.name, **values})

    def _save(self, task: RowTask, optimizer: torch.optim.Optimizer, number: int) -> None:
        own = {"modules": task.modules.state_dict(), "optimizer": optimizer.state_dict()}
        self._run.save(self._first + number, {"task": task.name, "finished": self._finished, **own})

    def _restore(self, task: RowTask, optimizer: torch.optim.Optimizer) -> int:
        """Steps of the task that are done; its state is as it was then."""
        if self._state is None or self._state["task"] != task.name:
            return 0
        task.modules.load_state_dict(self._state["modules"])
        optimizer.load_state_dict(self._state["optimizer"])
        return self._step - self._first


def finish_run(run: Run, work: Path) -> None:
    """Put the student at work/student in its place, remove the rest, and plot what was measured."""
    run.finish(work / "student")
    shutil.rmtree(work)
    lines = [{k: v for k, v in line.items() if k != "task"} for line in run.read_metrics()]
    plot_run(lines, run.path / "plots")


def draw(count: int, batch: int, seed: int, step: int) -> Ints:
    """The units of `count` that a step takes, sorted: with replacement, so that nothing grows with the cache."""
    return np.sort(np.random.default_rng([seed, step]).integers(0, count, batch))


def rate_at(optim: OptimConfig, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` of `steps`."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return 1.0
    done = (step - optim.warmup) / max(1, steps - optim.warmup)
    left = 1 - done if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return optim.floor + (1 - optim.floor) * left


def _step(task: RowTask, optimizer: torch.optim.Optimizer, units: Ints, clip: float | None) -> dict[str, float]:
    losses = task.losses(units)
    total = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(total):
        mend = "lower optimizer.lr, or look at the model with `eecompile verify`"
        raise NumericError(f"the loss of {task.name} is not finite", mend=mend)
    optimizer.zero_grad()
    total.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(task.modules.parameters(), clip)
    optimizer.step()
    return {name: float(loss.detach()) for name, loss in losses.items()}
