"""LoRA on a backbone too large to tune (Hu et al., 2021), by peft; merged into the weights when a student is saved."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from eecompile.errors import UsageError
from eecompile_training.distill_config import Tune


def add_lora(model: Any, tune: Tune, seed: int) -> Any:
    """Put LoRA factors into the layers of `model` itself that `tune` names; returns what `merge_lora` takes. Only the
    factors have a gradient.

    Raises UsageError where no projection has a target's name.
    """
    assert tune.lora is not None
    torch.manual_seed(seed)
    config, layers = tune.lora, None if tune.layers is None else list(range(tune.layers))
    everywhere: Any = "all-linear" if layers is None else projections(model)
    targets: Any = everywhere if config.targets is None else config.targets
    try:
        chosen = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, layers_to_transform=layers)
        return get_peft_model(model, chosen)
    except ValueError as e:
        raise UsageError(f"no LoRA on {config.targets}: {e}", where="tune.lora.targets") from e


def projections(model: nn.Module) -> list[str]:
    """What the linear modules of a model's layers are called; peft wants names where it is to know layers."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in linear if any(part.isdigit() for part in name.split("."))})


def merge_lora(lora: Any) -> Any:
    """The model with the factors merged into its weights."""
    return lora.merge_and_unload()
