"""Asking an encoder's exits and head what they would answer, and when an exit fires."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.engines.interface import Engine
from eecompile.runtime.rules import head_bounds
from eecompile.schema import Criterion, Task

Float = NDArray[np.float32]
LEAST_ROWS = 2  # a product of one row takes another kernel, whose last bits differ


@dataclass(frozen=True)
class ClassRule:
    """When an exit fires: every gate strictly bolder than its threshold. bounds: float32 [3], for the decision over
    labels. delta: for a regression, None where that gate is not among them."""

    bounds: Float
    delta: float | None

    @classmethod
    def of(cls, thresholds: Mapping[Criterion, float]) -> "ClassRule | None":
        """The rule of these thresholds; None where one of them is `never`."""
        if "never" in thresholds:
            return None
        return cls(head_bounds(thresholds), thresholds.get("delta"))


@dataclass(frozen=True)
class Said:
    """An exit's answers for N rows: logits [N, C], what the gates go by (None for a regression), whether it fires."""

    logits: Float
    fires: NDArray[np.bool_]
    max_prob: Float | None = None
    margin: Float | None = None
    entropy: Float | None = None


class AskedExit:
    """An exit, or the head, of an encoder. Thread-safe."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine, self._regression = engine, task == "regression"

    def __call__(self, rows: Float, rule: ClassRule | None, before: Float | None) -> Said:
        """Ask it of hidden rows [N, D]; without a rule nothing fires. before [N]: what the exit before it said, for a
        regression (NaN where there is none)."""
        count = len(rows)
        padded = rows if count >= LEAST_ROWS else np.concatenate([rows, np.zeros_like(rows[:1])])
        if self._regression:
            logits = self._engine.run({c.HIDDEN: padded})[c.LOGITS][:count]
            return Said(logits, delta_fires(logits[:, 0], before, rule))
        bounds = np.array(c.NEVER, np.float32) if rule is None else rule.bounds
        thresholds = np.tile(bounds, (len(padded), 1))
        out = {k: v[:count] for k, v in self._engine.run({c.HIDDEN: padded, c.THRESHOLDS: thresholds}).items()}
        return Said(out[c.LOGITS], out[c.EXIT_FLAG], out[c.MAX_PROB], out[c.MARGIN], out[c.ENTROPY])


def delta_fires(values: Float, before: Float | None, rule: ClassRule | None) -> NDArray[np.bool_]:
    """A regression's gate: [N], whether a value is finite and strictly nearer than `delta` to that of the exit before.

    PABEE's rule for regression (Zhou et al., "BERT Loses Patience", 2020, equation 4) with a patience of one; `fixed`
    alone fires for every finite value. NaN, as at the first exit, continues.
    """
    if rule is None or before is None:
        return np.zeros(len(values), np.bool_)
    finite = np.isfinite(values)
    if rule.delta is None:
        return finite
    fires: NDArray[np.bool_] = finite & (np.abs(values - before) < np.float32(rule.delta))
    return fires


def probabilities(logits: Float) -> NDArray[np.float64]:
    """The softmax of logits [N, C], in float64."""
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
