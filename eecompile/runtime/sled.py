"""SLED: full depth, with what the exits say on the way turned into a correction of the last layer's logits.

Zhang et al., "SLED: Self Logits Evolution Decoding for Improving Factuality in Large Language Models" (2024). It
changes what is said, not how fast: every token runs every layer, and the model's head once more for each exit. As in
the released code the steps move all logits, and those of other than the best tokens are set to a floor at the end.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.decode import Continuation, Decoder, Emitted, not_finite
from eecompile.runtime.gates import ExitGates, choose_logits
from eecompile.runtime.heads import Head

Double = NDArray[np.float64]

TOP: Final = 10  # tokens that may still be chosen
STEPS: Final = 10
RATE: Final = 2.0  # the published default; smaller ones change less
FLOOR: Final = -100.0  # the logit of every other token


def evolve(exits: NDArray[np.floating], final: NDArray[np.floating], rate: float = RATE) -> Double:
    """The evolved logits [V] of the last layer's `final` [V], given those of the exits [N, V]; float64.

    Each exit votes for each of the TOP tokens by how well the way from its logits to the final ones follows the
    gradient that would make it say that token; then a few steps of descent move the final logits to the votes' mean.
    Where no exit votes for any of them the final logits are returned as they are.
    """
    z = final.astype(np.float64)
    top = np.argsort(-z, kind="stable")[:TOP]
    votes = _votes(exits.astype(np.float64), z, top)
    total = votes.sum()
    if not total > 0:
        return z
    target = np.zeros_like(z)
    target[top] = votes.sum(axis=0) / total  # exits weigh as much as they voted, so that their shares cancel
    for step in range(STEPS):
        z -= rate * (1 - step / STEPS) * (_softmax(z) - target)
    evolved = np.full_like(z, FLOOR)
    evolved[top] = z[top]
    return evolved


class SledDecoder(Decoder):
    """Steps sequences in mode full, choosing from evolved logits. head: over a row of each exit and the last."""

    def __init__(self, head: Head, askers: list[ExitAsker], *, layers: int) -> None:
        super().__init__(head, ExitGates([], [], {}), layers=layers)
        self._askers = askers

    def start(self, those: Sequence[Continuation]) -> None:
        """As Decoder's; the last token of each prompt takes a step of its own, past every exit."""
        for one in those:
            one.stairs.rewind(one.stairs.length - 1)
        self.step(those)

    def step(self, those: Sequence[Continuation]) -> None:
        """Embed each one's last token, walk down and choose."""
        for one in those:
            one.stairs.append([one.last])
            ready = []
            for k, step in enumerate(one.stairs.schedule):
                row = one.stairs.run_step(k)[-1:]
                if step.exit is not None:
                    ready.append(self._askers[step.exit](row).hidden.copy())
            logits = self._head(np.concatenate([*ready, row]), logits=True).logits
            assert logits is not None
            self._choose(one, logits)

    def _choose(self, one: Continuation, logits: NDArray[np.float32]) -> None:
        """Emit from the logits [N + 1, V] of the exits and the last layer."""
        position, how = one.stairs.length, one.sampling
        if not np.isfinite(logits).all():
            one.fault = not_finite(position)
            return
        one.last = choose_logits(evolve(logits[:-1], logits[-1], how.sled_rate), position, how)
        one.certain = [Emitted(one.last, self._layers)]


def _votes(exits: Double, final: Double, top: NDArray[np.int64]) -> Double:
    """max(0, cos(softmax(z_n) - e_i, z_n - z_N))^2 for exit n and token i of `top` [N, tokens].

    The tokens of `top` are summed apart from the others: where one has nearly all of the probability, what is left of
    softmax(z_n) - e_i is lost in the rounding of sums that hold that token's.
    """
    probability, way = _softmax(exits), exits - final
    gradient = probability[:, None, top] - np.eye(len(top))  # [N, tokens, tokens]: row i for token i
    rest = probability.copy()
    rest[:, top] = 0
    product = (rest * way).sum(axis=1)[:, None] + (gradient * way[:, None, top]).sum(axis=2)
    size = (rest * rest).sum(axis=1)[:, None] + (gradient * gradient).sum(axis=2)
    length = np.sqrt(size) * np.linalg.norm(way, axis=1)[:, None]
    cosine = np.divide(product, length, out=np.zeros_like(product), where=length > 0)
    return np.asarray(np.maximum(0, cosine) ** 2)


def _softmax(z: Double) -> Double:
    weights = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
