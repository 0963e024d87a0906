"""When a layer is skipped, which exits a step trains, and how much they weigh (LayerSkip, EE-LLM, CALM, PABEE, FREE).

Layers are numbered as exits are: exit n reads what n layers give; LayerSkip's l is n - 1.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eecompile_training.distill_config import Curriculum, LayerDropout
from eecompile_training.settings import OptimConfig


def dropout_rates(config: LayerDropout, layers: int, step: int, steps: int) -> list[float]:
    """The probability that a row skips each layer at step `step` (from 0) of `steps` (LayerSkip, section 4.1.1):
    S(t) D(l) p_max, D(l) = exp(l ln 2 / (L - 1)) - 1; S(t) = 1, or exp(t ln 2 / (T - 1)) - 1."""
    scale = 1.0 if config.schedule == "one" else math.expm1(step * math.log(2) / max(1, steps - 1))
    return [scale * math.expm1(n * math.log(2) / max(1, layers - 1)) * config.p_max for n in range(layers)]


def dropped_layers(rates: Sequence[float], rows: Sequence[int], seed: int, step: int) -> NDArray[np.bool_]:
    """bool [L, rows]: what each row of the step's batch skips. A row's draw rests on its place in the batch alone,
    whatever process it is in."""
    draws = [np.random.default_rng([seed, 1, step, row]).random(len(rates)) for row in rows]
    skipped: NDArray[np.bool_] = np.array(rates)[:, None] > np.array(draws).T
    return skipped


def enabled_exits(config: Curriculum, count: int, step: int, steps: int) -> list[int]:
    """Which of `count` exits, shallow first, step `step` (from 0) of `steps` trains."""
    if config.kind == "rotational":
        return [i for i in range(count) if i % config.every == step % config.every]
    if config.kind == "gradual":
        opened = min(count, 1 + int(step * 2 * count / steps))
        return list(range(count - opened, count))
    return list(range(count))


def exit_weights(
    scale: Literal["equal", "index", "layerskip", "explicit"], layers: Sequence[int], total: int, *,
    s: float = 0.2, weights: Sequence[float] = (), enabled: Collection[int] | None = None,
) -> tuple[list[float], float]:  # fmt: skip
    """Weights of the exits after `layers` layers of `total`, and of the last layer; those not `enabled` (by number)
    have 0.

    equal: 1 each. explicit: `weights`, the last layer 1 (EE-LLM). index: proportional to the layer, with sum 1 (CALM;
    PABEE; FREE's (s CE_s + L CE_L) / (s + L)). layerskip: e(l) = s sum_(i<=l) i below the last layer, L - 1 + s
    sum_(i<=L-2) i there, divided by the sum over those enabled (LayerSkip, equations 4 to 6).
    """
    on = [enabled is None or i in enabled for i in range(len(layers))]
    if scale in ("equal", "explicit"):
        given = weights if scale == "explicit" else [1.0] * len(layers)
        return [w if active else 0.0 for w, active in zip(given, on, strict=True)], 1.0
    if scale == "index":
        raw, last = [float(n) for n in layers], float(total)
    else:
        raw = [s * (n - 1) * n / 2 for n in layers]
        last = total - 1 + s * (total - 2) * (total - 1) / 2
    active = [w if is_on else 0.0 for w, is_on in zip(raw, on, strict=True)]
    whole = sum(active) + last
    return [w / whole for w in active], last / whole


def warmed(step: int, steps: int, shape: Literal["linear", "cosine"]) -> float:
    """The share of its weight that a loss has at step `step` (from 0) of a warm-up of `steps`."""
    if step >= steps:
        return 1.0
    part = step / steps
    return part if shape == "linear" else (1 - math.cos(math.pi * part)) / 2


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear up to `lr`, then as scheduled to its `floor`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.schedule]
    return config.lr * (config.floor + (1 - config.floor) * left)
