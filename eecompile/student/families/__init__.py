"""Model families: one descriptor file each, one literal table."""

from collections.abc import Callable, Mapping
from typing import Any

from eecompile.errors import UsageError
from eecompile.student.encoder import EncoderSpec
from eecompile.student.families import (
    bert,
    cohere,
    cohere2,
    distilbert,
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
    roberta,
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
