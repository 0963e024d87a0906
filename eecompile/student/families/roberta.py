"""RoBERTa and XLM-RoBERTa: BERT's layers, positions that begin after the padding id, another classifier."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.encoder import EncoderSpec
from eecompile.student.families import bert
from eecompile.student.families.encoders import size_of

DEFAULTS = {"vocab_size": 50265, "pad_token_id": 1}


def describe(config: Mapping[str, Any]) -> EncoderSpec:
    """Positions up to the padding id's are never used, so that a text may be that much shorter than the table."""
    full = {**DEFAULTS, **config}
    spec = bert.describe(full)
    padding = size_of(full, "pad_token_id", c.MAX_VOCAB, 1, least=0)
    longest = spec.positions - padding - 1
    if longest < 1:
        raise UsageError(f"{spec.positions} positions leave none after the padding id {padding}", where="config.json")
    classifier = "classifier" if spec.per_token else "classifier.out_proj"
    return replace(
        spec,
        family=str(config["model_type"]),
        max_positions=longest,
        padding=padding,
        names=bert.layered_names("roberta.", "classifier.dense", classifier),
    )
