"""Model families: one descriptor file each, one literal table."""

from collections.abc import Callable, Mapping
from typing import Any

from eecompile.errors import UsageError
from eecompile.student.families import (
    cohere,
    cohere2,
    gemma,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mt5,
    olmo2,
    olmo3,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)
from eecompile.student.model import DecoderSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], DecoderSpec]] = {
    "cohere": cohere.describe,
    "cohere2": cohere2.describe,
    "gemma": gemma.describe,
    "gemma2": gemma2.describe,
    "gemma3_text": gemma3_text.describe,
    "gpt2": gpt2.describe,
    "gpt_neox": gpt_neox.describe,
    "granite": granite.describe,
    "llama": llama.describe,
    "mistral": mistral.describe,
    "mt5": mt5.describe,
    "olmo2": olmo2.describe,
    "olmo3": olmo3.describe,
    "phi": phi.describe,
    "phi3": phi3.describe,
    "qwen2": qwen2.describe,
    "qwen3": qwen3.describe,
    "smollm3": smollm3.describe,
    "stablelm": stablelm.describe,
    "starcoder2": starcoder2.describe,
    "t5": t5.describe,
}


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """Describe the model of a Hugging Face config.json; raises UsageError for a family that is not in the table."""
    family = str(config.get("model_type"))
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(
            f"model family {family!r} is not supported",
            where="config.json",
            mend=f"supported families: {', '.join(sorted(FAMILIES))}",
        )
    if config.get("quantization_config"):
        raise UsageError(
            "the checkpoint is already quantised",
            where="config.json",
            mend="start from the float32, float16 or bfloat16 weights",
        )
    return FAMILIES[family](config)
