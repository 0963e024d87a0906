"""The measures of a layer, from what its probe said: agreement, information, calibration, what an oracle could skip.

Expected calibration error: Guo et al., "On Calibration of Modern Neural Networks" (2017), here of "this answer is the
full model's". The exit-affinity score is published without its exponent, which is stated wherever a score is.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eecompile_training.analyze.table import Bool, Float, Said

BINS: Final = 15
ALPHA: Final = 0.5
SURE: Final = 0.9  # p above which a probe is called sure


def calibration_error(confidence: Float, right: Bool, bins: int = BINS) -> float:
    """Mean of |confidence - accuracy| over equal bins of (0, 1], weighted by their tokens; both [N]."""
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, confidence.astype(np.float64) - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def perplexity(loss: Float) -> float | None:
    """exp of the mean loss in nats over what is a number; None where nothing is."""
    known = loss[~np.isnan(loss)]
    return float(np.exp(known.mean(dtype=np.float64))) if len(known) else None


def affinity(similarity: Sequence[float], layers: Sequence[int], depth: int, alpha: float = ALPHA) -> float:
    """Exit-affinity score: the mean over layers of S^alpha w^(1 - alpha), with w = (L - l) / L for the l-th layer from
    0, and S the mean cosine of its state with the last one's, not below 0."""
    weights = (depth - np.asarray(layers, np.float64) + 1) / depth
    return float(np.mean(np.clip(similarity, 0, None) ** alpha * weights ** (1 - alpha)))


def first_agreement(agrees: Sequence[Bool], layers: Sequence[int], depth: int) -> NDArray[np.int64]:
    """[N]: the first of the probed `layers` after which a token's answer is the full model's, or `depth`."""
    table = np.stack(agrees, axis=1)
    return np.where(table.any(axis=1), np.asarray(layers)[table.argmax(axis=1)], depth)


def oracle_skip(first: NDArray[np.int64], shallowest: int, depth: int, loss: float) -> float:
    """Share of layer runs that are spared if every token stops where it first agrees, and a share `loss` of the tokens,
    the deepest ones, give a wrong answer at the shallowest layer instead."""
    spared = int(np.floor(loss * len(first)))
    depths = np.sort(first).astype(np.float64)
    depths[len(depths) - spared :] = shallowest
    return float(1 - depths.mean() / depth)


def describe(said: Said) -> dict[str, Any]:
    """The measures of one probe, but for the information increment, which takes two."""
    sure = said.max_prob > SURE
    return {
        "agreement": float(said.agrees.mean()),
        "kl": None if np.isnan(said.kl).any() else float(said.kl.mean(dtype=np.float64)),
        "ece": calibration_error(said.max_prob, said.agrees),
        "perplexity": perplexity(said.loss),
        "cosine": float(said.cosine.mean(dtype=np.float64)),
        "sure": float(sure.mean()),
        "agreement_where_sure": float(said.agrees[sure].mean()) if sure.any() else None,
    }


def increments(kl: Sequence[float]) -> list[float]:
    """KL(full || l) - KL(full || l + 1) of probes in order of depth; of the last, to the full model itself."""
    following = [*kl[1:], 0.0]
    return [one - other for one, other in zip(kl, following, strict=True)]
