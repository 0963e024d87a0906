"""Thresholds that move while decoding: CALM's decay with time, FREE's fit to what verification shows.

In confident mode neither is ever bolder than the calibrated threshold, so that a calibration holds whatever they do.
For drafts FREE's is free: a wrong draft costs time, never correctness.
"""

import math
from dataclasses import dataclass, field

from eecompile.shapes import Adaptive

_EDGE = 1e-4  # a Beta density is taken no nearer to 0 and 1


def decayed(base: float, step: int, tau: float, tokens: int) -> float:
    """CALM's threshold for token `step` of an answer of `tokens`: clip(.9 base + .1 exp(-tau step / tokens), 0, 1).

    Schuster et al., "Confident Adaptive Language Modeling" (2022).
    """
    return min(1.0, max(0.0, 0.9 * base + 0.1 * math.exp(-tau * step / tokens)))


@dataclass
class Moments:
    """Count, sum and sum of squares of confidences in (0, 1)."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take in one value, moved off the edges."""
        x = min(1 - _EDGE, max(_EDGE, value))
        self.count, self.total, self.squares = self.count + 1, self.total + x, self.squares + x * x

    def beta(self) -> tuple[float, float] | None:
        """The Beta distribution (alpha, beta) of this mean and variance, or None where there is none."""
        if self.count < 2:
            return None
        mean = self.total / self.count
        variance = self.squares / self.count - mean * mean
        if not 1e-12 < variance < mean * (1 - mean):
            return None
        alpha = mean * (mean * (1 - mean) / variance - 1)
        return alpha, alpha * (1 - mean) / mean


@dataclass
class AdaptiveThreshold:
    """FREE's adaptive threshold of one exit in one sequence (Bae et al., "Fast and Robust Early-Exiting", 2023).

    Two Beta distributions by the method of moments, one of the confidences at which the exit agreed with the full model
    and one of the others; the threshold is the lowest grid point from which on the likelier is the one of the higher
    mean, by a share of more than zeta. None until both have been seen with some spread.
    """

    shape: Adaptive
    agreed: Moments = field(default_factory=Moments)
    differed: Moments = field(default_factory=Moments)
    updates: int = 0
    threshold: float | None = None

    def learn(self, confidence: float, agrees: bool) -> None:
        """Take in one confidence and whether the exit was right; refits, as often as is allowed."""
        if self.updates >= self.shape.updates or not math.isfinite(confidence):
            return
        (self.agreed if agrees else self.differed).add(confidence)
        pair = self.agreed.beta(), self.differed.beta()
        if pair[0] is None or pair[1] is None:
            return
        self.updates += 1
        self.threshold = lowest_likely(pair[0], pair[1], self.shape)


def lowest_likely(one: tuple[float, float], other: tuple[float, float], shape: Adaptive) -> float:
    """The grid point of `shape` above which, by count, the Beta distribution with the higher mean is the likelier."""
    upper, lower = sorted((one, other), key=lambda ab: -ab[0] / (ab[0] + ab[1]))
    step = (shape.high - shape.low) / (shape.points - 1)
    grid = [shape.low + i * step for i in range(shape.points)]
    likely = sum(_share(upper, lower, x) > shape.zeta for x in grid)
    return grid[min(shape.points - likely, shape.points - 1)]


def _share(upper: tuple[float, float], lower: tuple[float, float], x: float) -> float:
    """The likelihood of `upper` at x over that of both."""
    at = min(1 - _EDGE, max(_EDGE, x))
    gap = _log_density(lower, at) - _log_density(upper, at)
    return 1 / (1 + math.exp(min(700.0, gap)))


def _log_density(shape: tuple[float, float], x: float) -> float:
    a, b = shape
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
