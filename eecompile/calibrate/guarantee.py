"""What a calibration promises, and which point of a path keeps it: Learn-then-Test or conformal risk control.

Learn-then-Test (ltt.py): with probability 1 - error over the test documents the chosen point's risk is at most r.

Conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", 2022, theorem 1): the
risk is at most r in expectation over the test documents, so one calibration may break it. It takes losses that only
rise from safe to bold, and the boldest point whose mean loss over n documents is at most ((n + 1) r - B) / n, with
losses of at most B = 1. Along a path of thresholds a document's loss may fall, where one gate gets bolder and another
safer; so what is controlled is its highest loss up to each point, which is never less than the loss itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.ranges import conformal_bound
from eecompile.calibrate.documents import SHARES, Split
from eecompile.calibrate.ltt import betting, check_levels, documents_needed, fixed_sequence, hoeffding_bentkus
from eecompile.errors import UsageError
from eecompile.schema import RiskPoint, Thresholds

Losses = NDArray[np.float64]
Bool = NDArray[np.bool_]
Method = Literal["ltt", "crc"]
METHODS: Final[tuple[Method, ...]] = ("ltt", "crc")
NAMES: Final[dict[Method, Literal["learn-then-test", "conformal-risk-control"]]] = {
    "ltt": "learn-then-test",
    "crc": "conformal-risk-control",
}


@dataclass(frozen=True)
class Tested:
    """A point's mean loss as its method counts it, and its p-value (None of conformal risk control)."""

    risk: float
    p_value: float | None

    def point(
        self, level: float, thresholds: Sequence[Thresholds | None], early: Bool, depth: NDArray[Any]
    ) -> RiskPoint:
        """As a calibration has it. early [N], depth [N]: which tokens leave early, and after how many layers each."""
        return RiskPoint(
            level=level, thresholds=list(thresholds), risk=self.risk, p_value=self.p_value,
            exit_rate=float(early.mean()), mean_depth=float(depth.mean()),
        )  # fmt: skip


@dataclass(frozen=True)
class Guarantee:
    """A risk, the chance of breaking it (Learn-then-Test) or None (conformal risk control: in expectation)."""

    risk: float
    error: float | None

    @classmethod
    def of(cls, method: str, risk: float, error: float) -> "Guarantee":
        """The guarantee of these options; raises UsageError for an unknown method or levels that are no chances."""
        if method not in METHODS:
            raise UsageError(f"there is no method {method!r}", mend=f"one of {', '.join(METHODS)}")
        check_levels(risk, error)
        return cls(risk, error if method == "ltt" else None)

    @property
    def name(self) -> Literal["learn-then-test", "conformal-risk-control"]:
        """As CalibrationResult.method has it."""
        return NAMES["crc" if self.error is None else "ltt"]

    @property
    def needed(self) -> int:
        """Test documents with which thresholds that lose nothing pass."""
        if self.error is None:
            return max(1, math.ceil(1 / self.risk - 1 - 1e-9))
        return documents_needed(self.risk, self.error)

    def test(self, losses: Losses, *, shares: bool = False) -> tuple[list[Tested], int | None]:
        """Every point, from safe to bold, and the index of the boldest that passes (None: none does).

        losses: of each test document at each point [n, points], in [0, 1]. The points may not depend on the documents.
        shares: a loss is a share of a document's many tokens, for which betting is the stronger test, and not all or
        nothing.
        """
        n = len(losses)
        if self.error is not None:
            means = [float(mean) for mean in losses.mean(axis=0)]
            by_mean = [] if shares else [hoeffding_bentkus(mean, n, self.risk) for mean in means]
            p_values = [float(p) for p in betting(losses, self.risk)] if shares else by_mean
            tested = [Tested(mean, p) for mean, p in zip(means, p_values, strict=True)]
            return tested, fixed_sequence(p_values, self.error)
        means = [float(mean) for mean in np.maximum.accumulate(losses, axis=1).mean(axis=0)]
        passed = sum(mean <= conformal_bound(n, self.risk) for mean in means)  # they rise
        return [Tested(mean, None) for mean in means], passed - 1 if passed else None

    def all_pass(self, losses: Sequence[Losses], *, shares: bool = False) -> bool:
        """Whether the last of these points, each the losses of the documents [n], passes as all before it."""
        return self.test(np.stack(losses, axis=1), shares=shares)[1] == len(losses) - 1


def check_enough(found: Mapping[Split, int], guarantee: Guarantee, where: Path, *, limited: bool) -> None:
    """Raise UsageError where so few documents could not show the risk even if no exit were ever wrong.

    found: how many of those at `where` each split has. limited: whether there were more, and a limit left them out.
    """
    needed = guarantee.needed
    if found["test"] < needed or not found["path"]:
        used, more = sum(found.values()), "raise --limit to" if limited else "give"
        how = "in expectation" if guarantee.error is None else f"at an error of {guarantee.error:g}"
        what = f"{found['test']} of {used} documents are for testing, and a risk of {guarantee.risk:g} {how}"
        total = int(np.ceil(1.3 * max(needed, 10) / SHARES["test"]))  # splits go by hash: a third more than on average
        mend = f"{more} about {total} documents or more, all different and not short, or allow more risk"
        raise UsageError(f"{what} needs at least {needed}", where=str(where), mend=mend)
