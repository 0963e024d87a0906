"""Gemma 3, text: Gemma 2 with normalised queries and keys, and a rotation of its own for the layers that slide."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile import contract as c
from eecompile.student.families import gemma2
from eecompile.student.families.common import all_but_every, positive, ropes_by_type, size, sliding
from eecompile.student.model import DecoderSpec

DEFAULTS = {**gemma2.DEFAULTS, "max_position_embeddings": 131072}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """transformers knows an `attn_logit_softcapping` of this family but never applies it; nor does this."""
    full = {**DEFAULTS, **config}
    pattern = size(full, "sliding_window_pattern", c.MAX_LAYERS, 6)
    spec = gemma2.sandwich(full, pattern=pattern, qk_norm="head")
    slides = sliding(full, all_but_every(spec.layers, pattern))
    local = {"rope_theta": full.get("rope_local_base_freq", 1e4)}
    return replace(
        spec,
        ropes=ropes_by_type(full, spec.head_dim, slides, 1e6, local),
        logit_softcap=positive(config, "final_logit_softcapping", None),
    )
