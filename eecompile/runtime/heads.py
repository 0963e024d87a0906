"""Asking exits and the head: bound passes over a few rows, with numpy in and out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.engines.ort import OrtEngine, OrtPass
from eecompile.schema import Criterion

Float = NDArray[np.float32]


@dataclass(frozen=True)
class ExitRule:
    """When one exit fires: every gate strictly bolder than its threshold.

    learned: threshold of the cheap gate, None without one. bounds: float32 [3] for the head's decision.
    """

    exit: int
    layer: int
    learned: float | None
    bounds: Float

    @classmethod
    def of(cls, exit_: int, layer: int, thresholds: Mapping[Criterion, float]) -> "ExitRule | None":
        """The rule of these thresholds; None where one of them is `never`."""
        if "never" in thresholds:
            return None
        bounds = np.array(c.NO_BOUND, np.float32)
        for i, criterion in enumerate(c.HEAD_CRITERIA):
            if criterion in thresholds:
                bounds[i] = thresholds[criterion]  # type: ignore[index]
        return cls(exit_, layer, thresholds.get("learned"), bounds)

    def passes_cheap(self, confidence: float) -> bool:
        """Whether the learned gate lets this row go on to the head; NaN and values outside [0, 1] do not."""
        return self.learned is None or (self.learned < confidence <= 1.0)


@dataclass(frozen=True)
class Decisions:
    """The head's answer for N rows: views that the next pass of the same width overwrites."""

    token: NDArray[np.int64]
    max_prob: Float
    margin: Float
    entropy: Float
    exit_flag: NDArray[np.bool_]
    logits: Float | None


class Head:
    """The shared head over up to `rows` rows. Not thread-safe; the engine is shared."""

    def __init__(self, engine: OrtEngine, hidden: int, vocab: int, rows: int, minimum: int) -> None:
        self._engine, self._vocab, self._minimum = engine, vocab, minimum
        rows = max(rows, minimum)
        self._hidden = np.zeros((rows, hidden), np.float32)
        self._thresholds = np.tile(np.array(c.NO_BOUND, np.float32), (rows, 1))
        self._bounded = False
        self._logits: Float | None = None
        self._bound: dict[tuple[int, bool], tuple[OrtPass, Decisions]] = {}

    def __call__(self, rows: Float, bounds: Float | None = None, *, logits: bool = False) -> Decisions:
        """Decide rows [N, D] (normalised) against bounds [3] or [N, 3] (default: none); logits [N, V] on request."""
        n = len(rows)
        self._hidden[:n] = rows
        if bounds is not None or self._bounded:
            self._thresholds[:] = c.NO_BOUND
            self._bounded = bounds is not None
        if bounds is not None:
            self._thresholds[:n] = bounds
        run, decisions = self._binding(n, logits)
        run()
        return decisions

    def _binding(self, n: int, logits: bool) -> tuple[OrtPass, Decisions]:
        if (n, logits) not in self._bound:
            padded = max(n, self._minimum)
            floats = {name: np.zeros(padded, np.float32) for name in (c.MAX_PROB, c.MARGIN, c.ENTROPY)}
            buffers: dict[str, NDArray[Any]] = {
                c.HIDDEN: self._hidden[:padded],
                c.THRESHOLDS: self._thresholds[:padded],
                c.TOKEN: np.zeros(padded, np.int64),
                c.EXIT_FLAG: np.zeros(padded, np.bool_),
                **floats,
            }
            if logits:
                buffers[c.LOGITS] = self._logit_rows()[:padded]
            view = {name: buffer[:n] for name, buffer in buffers.items()}
            decisions = Decisions(
                view[c.TOKEN], view[c.MAX_PROB], view[c.MARGIN], view[c.ENTROPY], view[c.EXIT_FLAG], view.get(c.LOGITS)
            )
            self._bound[n, logits] = (self._engine.bind(buffers), decisions)
        return self._bound[n, logits]

    def _logit_rows(self) -> Float:
        """One buffer for logits of any width, made when first asked for (V may be large)."""
        if self._logits is None:
            self._logits = np.zeros((len(self._hidden), self._vocab), np.float32)
        return self._logits


class ExitAsker:
    """One exit's adapter and learned gate over up to `rows` rows. Not thread-safe; the engine is shared."""

    def __init__(self, engine: OrtEngine, hidden: int, rows: int, gate: Mapping[str, Float]) -> None:
        self._engine, self._gate = engine, dict(gate)
        self._hidden = np.zeros((rows, hidden), np.float32)
        self._out = np.zeros((rows, hidden), np.float32)
        self._confidence = np.ones(rows, np.float32)
        self._bound: dict[int, OrtPass] = {}

    def __call__(self, rows: Float) -> tuple[Float, Float]:
        """hidden rows [N, D] -> (exit_hidden [N, D] for the head, confidence [N]; ones without a learned gate)."""
        n = len(rows)
        self._hidden[:n] = rows
        if n not in self._bound:
            buffers = {
                c.HIDDEN: self._hidden[:n],
                c.EXIT_HIDDEN: self._out[:n],
                c.CONFIDENCE: self._confidence[:n],
                **self._gate,
            }
            self._bound[n] = self._engine.bind(buffers)
        self._bound[n]()
        return self._out[:n], self._confidence[:n]
