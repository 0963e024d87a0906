"""Choosing a token from logits: greedy, or sampled with a seed.

A sample is a pure function of (logits, seed, position): the Gumbel-max trick with noise that is a hash of the seed, the
position and the token's id. So exact mode can sample too: a draft is right when the full model, with the same noise at
the same position, takes the same token, and the output equals full mode's for the same seed, token for token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0 and top_p 1 keep every token. sled: choose from logits evolved at `sled_rate`
    (sled.py), in mode full only. Raises UsageError out of range."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    sled: bool = False
    sled_rate: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise UsageError(f"temperature {self.temperature} is not a number from 0 up")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k} is negative", mend="0 keeps every token")
        if not (0 < self.sled_rate < float("inf")):
            raise UsageError(f"an evolution rate of {self.sled_rate} is not a number above 0")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is not above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the arg-max is taken."""
        return self.temperature == 0


def sample(logits: NDArray[np.float32], position: int, how: Sampling, tokens: NDArray[np.int64] | None = None) -> int:
    """The token for `position` from logits [V]. Not for greedy sampling, which reads the head's own arg-max.

    tokens: those of the logits, where they are not all tokens in order; their noise is the same wherever they stand.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near zero leaves the best ones alone
        ids, scores = _candidates((wide - wide.max()) / how.temperature, how)
    ids = ids if tokens is None else tokens[ids]
    return int(ids[np.argmax(scores + gumbel_noise(how.seed, position, ids))])


def gumbel_noise(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gumbel noise for each token id, the same wherever and whenever it is asked for.

    Two rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014) over seed, position and id give 53 random bits.
    """
    key = _mix_scalar(_mix_scalar(seed & _MASK) + position)
    bits = _mix(_mix(ids.astype(np.uint64) + np.uint64(key)))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _candidates(scores: NDArray[np.float64], how: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that top-k and then top-p leave, with their scores; of equal scores the lower ids."""
    if how.top_k == 0 and how.top_p == 1:
        return np.arange(len(scores)), scores
    ids = np.arange(len(scores))
    if 0 < how.top_k < len(scores):
        ids = np.flatnonzero(scores >= np.partition(scores, -how.top_k)[-how.top_k])
    ids = ids[np.lexsort((ids, -scores[ids]))][: how.top_k or None]  # by score, ties by id
    kept = scores[ids]
    if how.top_p < 1:
        probability = np.exp(kept - kept[0])
        before = np.cumsum(probability / probability.sum()) - probability / probability.sum()
        ids = ids[before < how.top_p]
    return ids, scores[ids]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x: NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _mix_scalar(x: int) -> int:
    with np.errstate(over="ignore"):
        return int(_mix(np.array([x & _MASK], np.uint64))[0])
