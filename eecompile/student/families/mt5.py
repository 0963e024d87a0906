"""mT5: T5 1.1 for many languages; its head never scales."""

from collections.abc import Mapping
from typing import Any

from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.families.t5 import encoder_decoder


def describe(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """Configs say anything of `tie_word_embeddings`; what the checkpoint holds decides."""
    return encoder_decoder({"feed_forward_proj": "gated-gelu", **config}, tied=True)
