"""OLMo 3: OLMo 2 with windows in three of four layers; scaled rotations only where a layer sees everything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families import olmo2
from eecompile.student.families.common import all_but_every, ropes_by_type, sliding, window_by_type
from eecompile.student.model import DecoderSpec

DEFAULTS = {"sliding_window": 4096}
THETA = 500_000.0


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """As in transformers, `rope_theta` outside of `rope_parameters` is not for the layers that slide."""
    full = {**DEFAULTS, **config}
    spec = olmo2.describe(full)
    slides = sliding(full, all_but_every(spec.layers, 4))
    ropes = ropes_by_type(full, spec.head_dim, slides, THETA, {"rope_theta": THETA})
    return replace(spec, windows=window_by_type(full, slides), ropes=ropes)
