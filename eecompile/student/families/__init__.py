"""Model families: one descriptor file each, one literal table."""

from collections.abc import Callable, Mapping
from typing import Any

from eecompile.errors import UsageError
from eecompile.student.encoder import EncoderSpec
from eecompile.student.families import bert, distilbert, llama, mistral, qwen2, qwen3, roberta
from eecompile.student.model import DecoderSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], DecoderSpec]] = {
    "llama": llama.describe,
    "mistral": mistral.describe,
    "qwen2": qwen2.describe,
    "qwen3": qwen3.describe,
}

ENCODERS: Mapping[str, Callable[[Mapping[str, Any]], EncoderSpec]] = {
    "bert": bert.describe,
    "distilbert": distilbert.describe,
    "roberta": roberta.describe,
    "xlm-roberta": roberta.describe,
}


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """Describe the model of a Hugging Face config.json; raises UsageError for a family that is not in the table."""
    family = str(config.get("model_type"))
    if family in ENCODERS:
        mend = "`build`, `run`, `calibrate`, `verify` and `bench` take encoders too; this only causal language models"
        raise UsageError(f"{family} is an encoder", where="config.json", mend=mend)
    if family not in FAMILIES:
        raise UsageError(
            f"model family {family!r} is not supported",
            where="config.json",
            mend=f"supported families: {', '.join(sorted(FAMILIES))}; encoders: {', '.join(sorted(ENCODERS))}",
        )
    _check_not_quantised(config)
    return FAMILIES[family](config)


def encoder_from_config(config: Mapping[str, Any]) -> EncoderSpec:
    """Describe the encoder of a config.json whose `model_type` is in ENCODERS."""
    _check_not_quantised(config)
    return ENCODERS[str(config["model_type"])](config)


def _check_not_quantised(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise UsageError(
            "the checkpoint is already quantised",
            where="config.json",
            mend="start from the float32, float16 or bfloat16 weights",
        )
