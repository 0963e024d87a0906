"""Learn-then-Test: which thresholds keep a document's expected loss under a bound, with a stated confidence.

Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test" (2021), with fixed-sequence testing; used for early exit by
Schuster et al., "Confident Adaptive Language Modeling" (2022), section 4. Losses are of independent documents and lie
in [0, 1].

The loss here is of a *union*: a token counts where any exit fires and disagrees with the full model, whether or not a
shallower exit had already answered (`union_losses`). What is emitted comes from an exit that fires, or from the full
model; so a token that comes out wrong is a token of the union, and the union only shrinks when a threshold is made
safer, an exit is closed, a minimum depth or a full pending queue forbids exits. Each of these therefore keeps the
guarantee without another test. The price is some power: a wrong exit counts even behind one that was right.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError

Bool = NDArray[np.bool_]
BOLDEST: Final = 0.99  # of the largest bet that no single document can ruin


def union_losses(wrong: Bool, documents: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean loss of each document [count].

    wrong: [T, exits], exit g fires at token t and differs from the full model. documents: [T], each token's document,
    from 0 to count - 1; every document has a token.
    """
    tokens = np.bincount(documents, minlength=count)
    return np.asarray(np.bincount(documents, wrong.any(axis=1), minlength=count) / tokens, np.float64)


def hoeffding(loss: float, n: int, risk: float) -> float:
    """Hoeffding's p-value of "the expected loss is above `risk`", where n documents have the mean `loss`."""
    return math.exp(-2 * n * max(0.0, risk - loss) ** 2)


def hoeffding_bentkus(loss: float, n: int, risk: float) -> float:
    """The Hoeffding-Bentkus p-value of the same: at least as small, and much smaller for small losses.

    Bates et al., "Distribution-Free, Risk-Controlling Prediction Sets" (2021), and Learn then Test.
    """
    low = min(loss, risk)
    bentkus = math.e * binomial_cdf(math.ceil(n * loss), n, risk)
    return min(1.0, bentkus, math.exp(-n * _divergence(low, risk)))


def betting(losses: NDArray[np.float64], risk: float) -> NDArray[np.float64]:
    """P-values of the same at each point of losses [n, points], by betting: at each document, in their order, a share
    of the capital is put on its loss being below `risk`; the p-value is one over the most that the capital came to.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024), with the bet that is
    best for the mean and the variance so far (section B.3, aGRAPA). Losses that are shares of a document's tokens
    vary far less than all-or-nothing ones of the same mean, for which alone Hoeffding-Bentkus is tight.
    """
    capital, most = np.zeros(losses.shape[1]), np.zeros(losses.shape[1])  # logarithms
    total, squares = np.zeros_like(capital), np.zeros_like(capital)
    for count, loss in enumerate(losses, start=1):
        mean = total / count
        gap = risk - mean
        spread = np.maximum(squares / count - mean**2, 0.0)
        bet = np.clip(gap / (spread + gap**2 + 1e-300), 0.0, BOLDEST / (1 - risk))
        capital += np.log1p(bet * (risk - loss))
        most = np.maximum(most, capital)
        total, squares = total + loss, squares + loss**2
    found: NDArray[np.float64] = np.exp(-most)
    return found


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of X ~ Binomial(n, p), 0 < p < 1, summed in log space."""
    if k >= n:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    most = max(logs)
    return min(1.0, math.exp(most) * math.fsum(math.exp(value - most) for value in logs))


def fixed_sequence(p_values: Sequence[float], error: float) -> int | None:
    """The boldest index that passes, walking from safe to bold and stopping at the first p above `error`.

    The order has to be chosen without the test documents. None: not even the first passes. The chance that the chosen
    one, or any before it, breaks the risk is at most `error` (fixed-sequence testing).
    """
    for index, p in enumerate(p_values):
        if not p <= error:
            return index - 1 if index else None
    return len(p_values) - 1 if p_values else None


def documents_needed(risk: float, error: float) -> int:
    """Test documents with which thresholds that lose nothing pass, whichever p-value is asked."""
    return math.ceil(-math.log(error) / math.log1p(BOLDEST * risk / (1 - risk)))


def check_levels(risk: float, error: float) -> None:
    """Raise UsageError unless both lie strictly between 0 and 1."""
    for name, value in (("risk", risk), ("error", error)):
        if not 0 < value < 1:
            raise UsageError(f"{name} {value:g} is not between 0 and 1", mend="0.05 is one in twenty")


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(a) from Bernoulli(b), a <= b, 0 < b < 1."""
    left = a * math.log(a / b) if a > 0 else 0.0
    return left + (1 - a) * math.log((1 - a) / (1 - b))
