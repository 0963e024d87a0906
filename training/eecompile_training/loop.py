"""The steps of a run: batches, gradients over processes, optimiser, metrics, checkpoints, and going on after a kill.

Everything that a step draws is a function of (seed, step), so that a run that went on is the run that was not broken,
to the bit on a CPU. Processes (torchrun; accelerate finds them) share a step's rows and add their gradients up.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eecompile.errors import NumericError, UsageError
from eecompile_training.curricula import learning_rate
from eecompile_training.runs import Run
from eecompile_training.settings import RunConfig
from eecompile_training.sharding import gathered, is_sharded, placed, placed_optimizer, reshard, whole

Progress = Callable[[str], None]


class Task(Protocol):
    """What a loop trains."""

    @property
    def module(self) -> nn.Module:
        """All that is trained; its `forward(batch, plan)` gives the loss of some rows of a step and its parts."""

    def groups(self) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser, each with "scale", what its learning rate is multiplied by."""

    def begin(self, step: int) -> tuple[Any, Any]:
        """The whole batch of a step (as data.Batch) and its plan; may switch what has a gradient."""

    def part(self, plan: Any, start: int, stop: int) -> Any:
        """The plan of the batch's rows from `start` to before `stop`."""

    def evaluate(self) -> dict[str, float]:
        """What is measured on held-out rows."""

    def state(self) -> dict[str, Any]:
        """What else a checkpoint has to hold."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take `state` back."""


@dataclass(frozen=True)
class Loop:
    """One run of a task."""

    config: RunConfig
    run: Run
    task: Task
    accelerator: Accelerator
    progress: Progress

    def train(self) -> None:
        """Run every step that is not done yet."""
        optimizer = self._optimizer()
        start = self._restore(optimizer)
        for step in range(start, self.config.steps):
            self._seed(step)
            began = time.perf_counter()
            batch, plan = self.task.begin(step)
            self._set_rate(optimizer, step)
            parts = self._gradients(batch, plan)
            parts["norm"] = self._clip(optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._report(step + 1, parts, int(batch.mask.sum()), time.perf_counter() - began)
            if (step + 1) % self.config.checkpoint_every == 0 and step + 1 < self.config.steps:
                self._save(step + 1, optimizer)

    def _optimizer(self) -> torch.optim.Optimizer:
        o = self.config.optimizer
        groups = [{**group, "weight_decay": o.weight_decay} for group in self.task.groups()]
        return torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps)

    def _seed(self, step: int) -> None:
        """Dropout and the like: of (seed, step, process)."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 1024 + self.accelerator.process_index)

    def _set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        rate = learning_rate(self.config.optimizer, step, self.config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def _gradients(self, batch: Any, plan: Any) -> dict[str, float]:
        """Add up the gradients of the step's rows; returns the parts of the loss, of the whole batch."""
        found: dict[str, Tensor] = {}
        for start, stop in self._shares(len(batch.ids)):
            part = batch.part(start, stop).to(self.accelerator.device)
            with self._autocast():
                loss, parts = self.task.module(part, self.task.part(plan, start, stop))
            if loss.requires_grad:
                (loss * self._scale()).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                found[name] = found.get(name, torch.zeros_like(value)) + value
        self._add_up()
        names = sorted(found)
        values = self._summed(torch.stack([found[name].float() for name in names])).tolist()
        if not all(map(torch.isfinite, torch.tensor(values))):
            raise NumericError("the loss is not a number any more", where=str(self.run.path), mend="lower optimizer.lr")
        return dict(zip(names, values, strict=True))

    def _autocast(self) -> torch.autocast:
        """With shards it forgets each weight that it cast, which its cache would keep whole."""
        cached, on = not is_sharded(self.task.module), self.config.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=on, cache_enabled=cached)

    def _scale(self) -> int:
        """What makes FSDP's mean over processes the sum that a loss divided by the whole step's count needs."""
        return self.accelerator.num_processes if is_sharded(self.task.module) else 1

    def _shares(self, rows: int) -> Iterator[tuple[int, int]]:
        """This process's rows of the step's, `micro` at a time."""
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        if rows % count:
            mend = "make `batch` a multiple of the number of processes"
            raise UsageError(f"{rows} rows do not divide among {count} processes", where="batch", mend=mend)
        own, first = rows // count, index * (rows // count)
        size = self.config.micro or own
        for start in range(first, first + own, size):
            yield start, min(start + size, first + own)

    def _add_up(self) -> None:
        """Sum the gradients of all processes. What has none in any has none, as in a single process: the optimiser
        leaves it alone, while a zero would still let weights decay and momentum move them."""
        if is_sharded(self.task.module):  # FSDP did
            return reshard(self.task.module)
        if self.accelerator.num_processes == 1:
            return
        parameters = [p for group in self.task.groups() for p in group["params"]]
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        for parameter, anywhere in zip(parameters, self._summed(has.to(self.accelerator.device)).tolist(), strict=True):
            if anywhere:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._summed(grad)

    def _summed(self, value: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(value, "sum")
        return summed

    def _clip(self, optimizer: torch.optim.Optimizer) -> float:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        most = self.config.optimizer.clip
        return float(whole(nn.utils.clip_grad_norm_(parameters, float("inf") if most is None else most)))

    def _report(self, step: int, parts: dict[str, float], tokens: int, seconds: float) -> None:
        last = step == self.config.steps
        if step % self.config.log_every == 0 or last:
            self.run.log(step, parts)
            self.run.time(step, {"seconds": seconds, "tokens_per_second": tokens / seconds})
        if step % self.config.evaluate_every == 0 or last:
            self.progress(f"evaluate after step {step}")
            self.run.log(step, self.task.evaluate())
        self.progress(f"step {step} of {self.config.steps}, loss {parts['loss']:.4f}, {tokens / seconds:.0f} tokens/s")

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = {n: p.detach() for n, p in self.task.module.named_parameters() if id(p) in held}
        state = {"trained": trained, "optimizer": optimizer.state_dict(), "task": self.task.state()}
        self.run.save(step, gathered(state, keep=self.run.writes))

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        step, state = self.run.latest()
        self.run.rewind(step)
        if state is None:
            return 0
        self.progress(f"going on after step {step}")
        with torch.no_grad():
            for name, parameter in self.task.module.named_parameters():
                if name in state["trained"]:
                    parameter.copy_(placed(state["trained"][name], parameter))
        optimizer.load_state_dict(placed_optimizer(state["optimizer"], optimizer))
        self.task.restore(state["task"])
        return step
