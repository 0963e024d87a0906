"""FSDP of `train distill`: parameters, gradients and moments of the optimiser in shards, one a process (FSDP2).

A layer's parameters are whole while it runs; those outside of layers (embeddings, head, norm, exits, projections) from
the beginning of `Distilled.forward` to the end of the pass back. The teacher is sharded in the same way.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from eecompile_training.distilled import Distilled

T = TypeVar("T")


def shard(module: Distilled, mesh: DeviceMesh) -> None:
    """Shard a module on the CPU and its teacher over the processes of a mesh, and move them to its devices."""
    teacher = module.teacher
    for backbone in [module.backbone, *([] if teacher is None else [teacher])]:
        for layer in backbone.layers:
            fully_shard(layer, mesh=mesh)
        backbone.watch()
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "call")
    if teacher is not None:
        sharded = fully_shard(teacher, mesh=mesh)
        module.register_forward_hook(lambda *_: sharded.reshard())


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are in shards."""
    return isinstance(module, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Leave shards alone of what is outside of layers; for when no pass back follows, which does so itself."""
    if isinstance(module, FSDPModule):
        module.reshard()


def apart(module: Distilled, function: Callable[[], T]) -> T:
    """What `function`, which uses parts of the module, gives while what is outside of layers is whole."""
    found: T = module.call(function)
    reshard(module)
    return found


def whole(value: Tensor) -> Tensor:
    """A tensor whose shards are put together in every process; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(value: Any, *, keep: bool) -> Any:
    """The same with every sharded tensor in it whole, on the CPU of processes that `keep` it (None in others)."""
    if isinstance(value, Mapping):
        return {key: gathered(part, keep=keep) for key, part in value.items()}
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else None


def placed(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, in shards like another's; as it is where that has none."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def placed_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `gathered` made of an optimiser's state, in shards like its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: placed(v, parameters[index]) if v.shape == parameters[index].shape else v for name, v in of.items()
        }
        for index, of in state["state"].items()
    }
    return {**state, "state": moments}


@torch.no_grad()
def gather(module: nn.Module, *, keep: bool) -> None:
    """Put whole parameters in the place of shards, on the CPU of processes that `keep` them. It trains no more."""
    known: dict[nn.Parameter, nn.Parameter | None] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter not in known:
                full = gathered(parameter.detach(), keep=keep)
                known[parameter] = None if full is None else nn.Parameter(full, requires_grad=False)
            if known[parameter] is not None:
                setattr(part, name, known[parameter])
