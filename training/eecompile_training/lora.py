"""LoRA on a backbone too large to tune (Hu et al., 2021), by peft; merged into the weights when a student is saved."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from eecompile.errors import UsageError
from eecompile_training.distill_config import Lora


def add_lora(model: Any, config: Lora, seed: int) -> Any:
    """Put LoRA factors into `model` itself; returns what `merge_lora` takes. Only the factors have a gradient.

    Raises UsageError where no projection has a target's name.
    """
    torch.manual_seed(seed)
    targets: Any = "all-linear" if config.targets is None else config.targets
    try:
        return get_peft_model(model, LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets))
    except ValueError as e:
        raise UsageError(f"no LoRA on {config.targets}: {e}", where="tune.lora.targets") from e


def merge_lora(lora: Any) -> Any:
    """The model with the factors merged into its weights."""
    return lora.merge_and_unload()
