"""The program that test_sharding.py starts by torchrun: runs of `train distill`, and what of them a process holds.

sharded_runs.py FOLDER: every FOLDER/*.json is a config; "broken" stops after its checkpoint at step 3 and goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from eecompile_training.distill import distill
from eecompile_training.distill_config import DistillConfig
from eecompile_training.distilled import Distilled
from eecompile_training.loop import Loop
from eecompile_training.runs import Run
from torch import nn
from torch.distributed.tensor import DTensor

STOP = 3


class Stopped(Exception):
    """In every process, as a kill would be."""


class Watch:
    """What a process holds of a run: local and whole sizes of parameters, teacher and moments, by name."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}
        self.whole_after_forward: set[str] = set()

    def train(self, loop: Loop) -> None:
        module = loop.task.module
        assert isinstance(module, Distilled)
        module.register_forward_hook(lambda *_: self.look(module))
        TRAIN(loop)

    def look(self, module: Distilled) -> None:
        """Between the pass forward and the one back."""
        named = [*_named(module.backbone, "student")]
        named += [] if module.teacher is None else _named(module.teacher, "teacher")
        self.whole_after_forward |= {name for name, p in named if not isinstance(p, DTensor)}

    def save(self, loop: Loop, step: int, optimizer: torch.optim.Optimizer) -> None:
        module = loop.task.module
        assert isinstance(module, Distilled)
        named = _named(module, "student") + ([] if module.teacher is None else _named(module.teacher, "teacher"))
        named += [
            (f"{kind}.{i}.{j}", optimizer.state[p][kind])
            for i, group in enumerate(optimizer.param_groups)
            for j, p in enumerate(group["params"])
            for kind in ("exp_avg", "exp_avg_sq")
            if kind in optimizer.state[p]
        ]
        self.sizes |= {name: (_local(t), t.numel()) for name, t in named}
        SAVE(loop, step, optimizer)


def _named(module: nn.Module, owner: str) -> list[tuple[str, Any]]:
    return [(f"{owner}.{name}", p) for name, p in module.named_parameters()]


def _local(tensor: torch.Tensor) -> int:
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


def stop_after(run: Run, step: int, state: Any) -> None:
    WRITE(run, step, state)
    if step == STOP and run.path.name == "broken":
        raise Stopped


TRAIN, SAVE, WRITE = Loop.train, Loop._save, Run.save
if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for path in sorted(folder.glob("*.json")):
        config, watch = DistillConfig.model_validate_json(path.read_text()), Watch()
        Loop.train, Loop._save = (lambda loop, w=watch: w.train(loop)), (lambda *a, w=watch: w.save(*a))  # type: ignore[method-assign]
        Run.save = stop_after  # type: ignore[method-assign]
        try:
            distill(config)
        except Stopped:
            Run.save = WRITE  # type: ignore[method-assign]
            if path.stem == "broken":
                torch.distributed.barrier()
                distill(config, resume=True)
        seen = {"sizes": watch.sizes, "whole": sorted(watch.whole_after_forward)}
        rank = torch.distributed.get_rank()
        (folder / f"{path.stem}.seen-{rank}").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()
