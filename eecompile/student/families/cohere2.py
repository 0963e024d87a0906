"""Cohere 2 (Command R7B): Cohere with windows in three of four layers; the others have no positions at all."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eecompile.student.families import cohere
from eecompile.student.families.common import all_but_every, size, sliding, window_by_type
from eecompile.student.model import DecoderSpec

DEFAULTS = {"sliding_window": 4096}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """A head is D / H wide, whatever the config says of it."""
    full = {**DEFAULTS, **config, "head_dim": None}
    spec = cohere.parallel(full)
    pattern = size(full, "sliding_window_pattern", spec.layers + 4, 4)
    windows = window_by_type(full, sliding(full, all_but_every(spec.layers, pattern)))
    return replace(
        spec,
        windows=windows,
        ropes=tuple(None if window is None else rope for window, rope in zip(windows, spec.ropes, strict=True)),
    )
