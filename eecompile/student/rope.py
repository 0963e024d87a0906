"""Rotary position embedding: frequencies from a Hugging Face config, tables for a graph.

Sources: RoPE (Su et al. 2021, section 3.2); linear position interpolation (Chen et al. 2023); the frequency bands of
Llama 3.1; YaRN (Peng et al. 2023, sections 3.2 and 3.4).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError


@dataclass(frozen=True)
class Rope:
    """`kind` is default, linear, llama3 or yarn; `parameters` are the config's own numbers for that kind."""

    theta: float
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict)


def rope_from_config(config: Mapping[str, Any]) -> Rope:
    """Read rope settings of either form: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise UsageError(f"the rope settings are {settings!r}, not an object", where="config.json")
    theta = settings.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise UsageError(
            f"rope scaling {kind!r} is not supported",
            where="config.json",
            mend=f"supported: {', '.join(sorted(_SCALINGS))}",
        )
    if config.get("partial_rotary_factor", settings.get("partial_rotary_factor")) not in (None, 1.0):
        raise UsageError("a partial rotary embedding is not supported", where="config.json")
    numbers = {k: float(v) for k, v in settings.items() if isinstance(v, (int, float)) and k != "rope_theta"}
    numbers.setdefault("max_position_embeddings", config.get("max_position_embeddings") or 2048)
    missing = [key for key in _NEEDED[kind] if key not in numbers]
    if missing:
        raise UsageError(f"rope scaling {kind!r} lacks {', '.join(missing)}", where="config.json")
    return _checked(theta, kind, numbers)


def _checked(theta: Any, kind: str, numbers: Mapping[str, float]) -> Rope:
    """Refuse numbers that give no frequencies."""
    if not isinstance(theta, (int, float)) or not 1 < theta < math.inf:
        raise UsageError(f"rope_theta is {theta!r}, not a number above 1", where="config.json")
    least = dict.fromkeys((*_NEEDED[kind], "original_max_position_embeddings"), 0.0)
    if kind == "llama3":
        least["high_freq_factor"] = numbers["low_freq_factor"]
    for key, value in numbers.items():
        if not least.get(key, -math.inf) < value < math.inf:
            raise UsageError(f"rope scaling {kind!r} has {key} {value:g}", where="config.json")
    return Rope(float(theta), kind, numbers)


def rope_tables(rope: Rope, head_dim: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine tables, float32 [positions, head_dim / 2]."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = (np.float32(1.0) / np.power(np.float32(rope.theta), exponent)).astype(np.float32)
    frequencies, magnitude = _SCALINGS[rope.kind](base, rope, head_dim)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)[None, :]
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)


def _default(base: NDArray[np.float32], rope: Rope, head_dim: int) -> tuple[NDArray[np.float32], float]:
    return base, 1.0


def _linear(base: NDArray[np.float32], rope: Rope, head_dim: int) -> tuple[NDArray[np.float32], float]:
    return base / np.float32(rope.parameters["factor"]), 1.0


def _llama3(base: NDArray[np.float32], rope: Rope, head_dim: int) -> tuple[NDArray[np.float32], float]:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    p = rope.parameters
    context, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
    wavelength = 2 * math.pi / base
    blend = (context / wavelength - low) / (high - low)
    mixed = (1 - blend) * base / p["factor"] + blend * base
    scaled = np.where(
        wavelength > context / low, base / p["factor"], np.where(wavelength < context / high, base, mixed)
    )
    return scaled.astype(np.float32), 1.0


def _yarn(base: NDArray[np.float32], rope: Rope, head_dim: int) -> tuple[NDArray[np.float32], float]:
    """Interpolate slow dimensions, keep fast ones, and raise the attention temperature."""
    p = rope.parameters
    context = p.get("original_max_position_embeddings", p["max_position_embeddings"])

    def dimension(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(p.get("beta_fast") or 32.0), dimension(p.get("beta_slow") or 1.0)
    if p.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 1e-3), 0, 1)
    scaled = base / p["factor"] * ramp + base * (1 - ramp)
    return scaled.astype(np.float32), p.get("attention_factor", _yarn_magnitude(p))


def _yarn_magnitude(p: Mapping[str, float]) -> float:
    def scale(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(p["factor"]) + 1.0 if p["factor"] > 1 else 1.0

    if p.get("mscale") and p.get("mscale_all_dim"):
        return scale(p["mscale"]) / scale(p["mscale_all_dim"])
    return scale(1.0)


_SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
