"""The program that test_sharding.py starts by torchrun: runs of `train distill`, and notes of what a process holds.

sharded_runs.py CONFIG.json ...; those named in STOPPED stop after a checkpoint, and "broken" then goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from eecompile_training import distill
from eecompile_training.distill_config import DistillConfig
from eecompile_training.distilled import Distilled
from eecompile_training.loop import Loop
from torch import nn
from torch.distributed.tensor import DTensor

STOP, STOPPED = 3, ("broken", "moved")


class Stopped(Exception):
    """In every process at once, as a kill would be."""


class WatchedLoop(Loop):
    """A loop that notes what this process holds, beside the run's folder."""

    def train(self) -> None:
        """As Loop's, with a look between the passes forward and back."""
        self.task.module.register_forward_hook(lambda *_: self._note("forward", self._parameters()))
        super().train()

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        moments = {f"{n}.{kind}": optimizer.state[p][kind] for n, p in _held(optimizer) for kind in optimizer.state[p]}
        self._note("between", self._parameters() | {n: t for n, t in moments.items() if t.ndim})
        super()._save(step, optimizer)
        if step == STOP and self.run.path.name in STOPPED:
            raise Stopped

    def _parameters(self) -> dict[str, Any]:
        module = self.task.module
        assert isinstance(module, Distilled)
        owned: dict[str, nn.Module | None] = {"student": module, "teacher": module.teacher}
        named = {owner: part.named_parameters() for owner, part in owned.items() if part is not None}
        return {f"{owner}.{name}": p for owner, found in named.items() for name, p in found}

    def _note(self, when: str, tensors: dict[str, Any]) -> None:
        """{name: [numbers here, numbers in all]}."""
        sizes = {n: [(t.to_local() if isinstance(t, DTensor) else t).numel(), t.numel()] for n, t in tensors.items()}
        path = self.run.path.with_suffix(f".{when}-{self.accelerator.process_index}")
        path.write_text(json.dumps(sizes))


def _held(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    groups = enumerate(optimizer.param_groups)
    return [
        (f"moment.{i}.{j}", p) for i, group in groups for j, p in enumerate(group["params"]) if p in optimizer.state
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in map(Path, sys.argv[1:]):
        config = DistillConfig.model_validate_json(path.read_text())
        distill.Loop = WatchedLoop  # type: ignore[misc]
        try:
            distill.distill(config)
        except Stopped:
            torch.distributed.barrier()
            distill.Loop = Loop  # type: ignore[misc]
            if path.stem == "broken":
                distill.distill(config, resume=True)
    torch.distributed.destroy_process_group()
