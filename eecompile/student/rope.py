"""Rotary position embedding: frequencies from a Hugging Face config, tables for a graph.

Sources: RoPE (Su et al. 2021, section 3.2); linear position interpolation (Chen et al. 2023); the frequency bands of
Llama 3.1; YaRN (Peng et al. 2023, sections 3.2 and 3.4); LongRoPE (Ding et al. 2024, section 3).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """`kind` is a key of SCALINGS; `parameters` are the config's own numbers for that kind.

    share: of each head, from its first dimension on, that is rotated. interleaved: neighbouring dimensions turn
    together, not the two halves. divisors of the frequencies, and those that take their place in a context beyond
    `original_max_position_embeddings`: of longrope, one a frequency.
    """

    theta: float
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    interleaved: bool = False
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()

    def rotated(self, head_dim: int) -> int:
        """How many dimensions of a head turn."""
        return int(head_dim * self.share)

    def at_context(self, context: int) -> "Rope":
        """The rotation of a build for `context` positions. A sequence that outgrows the original context would change
        its frequencies, and with them keys that are in the cache; a build has those of its whole context."""
        if self.kind != "longrope" or context <= self.parameters["original_max_position_embeddings"]:
            return self
        return replace(self, divisors=self.long_divisors)


def rope_from_config(
    config: Mapping[str, Any], head_dim: int, *, share: float | None = None, settings: Any = None
) -> Rope:
    """Read rope settings of either form: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    share: what the family rotates of a head where the config does not say (None: always all of it). settings: in place
    of the config's own `rope_parameters`.
    """
    settings = settings or config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise UsageError(f"the rope settings are {settings!r}, not an object", where="config.json")
    theta = settings.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise UsageError(
            f"rope scaling {kind!r} is not supported",
            where="config.json",
            mend=f"supported: {', '.join(sorted(SCALINGS))}",
        )
    numbers = {k: float(v) for k, v in settings.items() if isinstance(v, (int, float)) and k != "rope_theta"}
    numbers.pop("partial_rotary_factor", None)
    numbers.setdefault("max_position_embeddings", config.get("max_position_embeddings") or 2048)
    if kind == "longrope":
        original = config.get("original_max_position_embeddings")
        numbers.setdefault("original_max_position_embeddings", numbers["max_position_embeddings"])
        numbers |= {} if original is None else {"original_max_position_embeddings": original}
    missing = [key for key in _NEEDED[kind] if key not in numbers]
    if missing:
        raise UsageError(f"rope scaling {kind!r} lacks {', '.join(missing)}", where="config.json")
    rope = replace(_checked(theta, kind, numbers), share=_share(config, settings, head_dim, share))
    return _with_divisors(rope, settings, head_dim) if kind == "longrope" else rope


def _share(config: Mapping[str, Any], settings: Mapping[str, Any], head_dim: int, default: float | None) -> float:
    share = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if default is None and share not in (None, 1.0):
        raise UsageError("a partial rotary embedding is not supported in this family", where="config.json")
    share = share if share is not None else 1.0 if default is None else default
    turned = int(head_dim * share) if isinstance(share, (int, float)) and 0 < share <= 1 else 0
    if not turned or turned % 2:
        raise UsageError(f"rotating {share!r} of heads of {head_dim} leaves no even number", where="config.json")
    return float(share)


def _with_divisors(rope: Rope, settings: Mapping[str, Any], head_dim: int) -> Rope:
    """LongRoPE's two lists, one number for each frequency."""
    lists = []
    for key in ("short_factor", "long_factor"):
        given = settings.get(key)
        numbers = given if isinstance(given, list) else []
        good = all(isinstance(n, (int, float)) and 0 < n < math.inf for n in numbers)
        if not good or len(numbers) != rope.rotated(head_dim) // 2:
            raise UsageError(f"{key} is not {rope.rotated(head_dim) // 2} positive numbers", where="config.json")
        lists.append(tuple(float(n) for n in numbers))
    return replace(rope, divisors=lists[0], long_divisors=lists[1])


def _checked(theta: Any, kind: str, numbers: Mapping[str, float]) -> Rope:
    """Refuse numbers that give no frequencies."""
    if not isinstance(theta, (int, float)) or not 1 < theta < math.inf:
        raise UsageError(f"rope_theta is {theta!r}, not a number above 1", where="config.json")
    least = dict.fromkeys((*_NEEDED[kind], "original_max_position_embeddings"), 0.0)
    if kind == "llama3":
        least["high_freq_factor"] = numbers["low_freq_factor"]
    if kind == "longrope":
        least |= {"original_max_position_embeddings": 1.0, "factor": 0.0}
    for key, value in numbers.items():
        if not isinstance(value, (int, float)) or not least.get(key, -math.inf) < value < math.inf:
            raise UsageError(f"rope scaling {kind!r} has {key} {value!r}", where="config.json")
    return Rope(float(theta), kind, numbers)


def rope_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Float, Float]:
    """Cosine and sine tables, float32 [positions, rotated dimensions / 2]."""
    rotated = rope.rotated(head_dim)
    exponent = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    base = (np.float32(1.0) / np.power(np.float32(rope.theta), exponent)).astype(np.float32)
    frequencies, magnitude = SCALINGS[rope.kind](base, rope, rotated)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)[None, :]
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)


def _default(base: Float, rope: Rope, head_dim: int) -> tuple[Float, float]:
    return base, 1.0


def _linear(base: Float, rope: Rope, head_dim: int) -> tuple[Float, float]:
    return base / np.float32(rope.parameters["factor"]), 1.0


def _llama3(base: Float, rope: Rope, head_dim: int) -> tuple[Float, float]:
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


def _yarn(base: Float, rope: Rope, head_dim: int) -> tuple[Float, float]:
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


def _longrope(base: Float, rope: Rope, head_dim: int) -> tuple[Float, float]:
    """A divisor of its own for each frequency, and attention sharpened by how far the context was stretched."""
    p = rope.parameters
    original = p["original_max_position_embeddings"]
    stretch = float(p.get("factor", p["max_position_embeddings"] / original))
    magnitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    divisors: Float = np.asarray(rope.divisors, np.float32)
    return base / divisors, p.get("attention_factor", float(magnitude))


SCALINGS: Mapping[str, Callable[[Float, Rope, int], tuple[Float, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": (),
}
