"""Several processes that learn one policy: torch.distributed (gloo), started by torchrun; one process needs none.

Prompts are dealt out by rank, so that a group is never split. Gradients are summed, and every process takes the same
step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def deal(self, items: Sequence[T]) -> list[T]:
        """This process's share."""
        return list(items[self.rank :: self.count])

    def gather(self, items: Sequence[T]) -> list[T]:
        """The shares of all processes put together again, as they were before `deal`."""
        if self.count == 1:
            return list(items)
        shares: list[list[T]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(shares, list(items))
        whole = [share[i : i + 1] for i in range(max(map(len, shares))) for share in shares]
        return [item for part in whole for item in part]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started together; one alone where it was not torchrun that started this one."""
    if not distributed.is_torchelastic_launched():
        yield Ranks()
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def flat_gradients(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """The gradients as one vector; zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])


def put_gradients(parameters: Sequence[torch.nn.Parameter], flat: Tensor) -> None:
    """The reverse of `flat_gradients`."""
    parts = torch.split(flat, [p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.reshape(p.shape).clone()
