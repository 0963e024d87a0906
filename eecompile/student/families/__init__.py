"""Model families: one descriptor file each, one literal table."""

from collections.abc import Callable, Mapping
from typing import Any

from eecompile.errors import UsageError
from eecompile.student.families import llama, mistral, qwen2, qwen3
from eecompile.student.model import DecoderSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], DecoderSpec]] = {
    "llama": llama.describe,
    "mistral": mistral.describe,
    "qwen2": qwen2.describe,
    "qwen3": qwen3.describe,
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
