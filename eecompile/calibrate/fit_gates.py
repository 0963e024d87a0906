"""Train the gates of fitted exits on cached rows, in numpy.

Each learns whether the translated exit agrees. On the documents that a translator was fitted on it agrees too often, so
the labels of every other document come from one that was fitted on the rest (two-fold cross-fitting).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.calibrate.gate import Bool, train_gate
from eecompile.calibrate.plan import PREDICTOR_UNITS, UNITS, ExitPlan
from eecompile.calibrate.rows import NormalEquations, RowCache
from eecompile.calibrate.small_heads import SmallHead
from eecompile.calibrate.tables import Float, Progress
from eecompile.runtime.bundle import Bundle

Ints = NDArray[np.int64]
Map = tuple[Float, Float]
_PLAIN_ROWS: Final = 2048  # rows that the plain exit's agreement is measured on
_HELD_OUT: Final = 5  # every fifth document only stops a gate's training


@dataclass(frozen=True)
class Evidence:
    """What the fit documents left. halves: the sums of each exit over even and over odd documents. cache: normalised
    rows of every exit; raw: the first exit's as they are, where a router wants them. counts [V]: of the tokens."""

    halves: list[tuple[NormalEquations, NormalEquations]]
    cache: RowCache
    raw: RowCache | None
    counts: Ints


class Judge:
    """Says which tokens an exit's head gives for translated rows, and whether they are the full model's."""

    def __init__(self, bundle: Bundle, cache: RowCache, heads: Mapping[str, SmallHead]) -> None:
        self.cache, self.width, self.heads = cache, bundle.manifest.prefill_rows, heads
        self._full = bundle.heads(self.width)[c.FULL_HEAD]

    def agrees(self, exit_: int, head: str, rows: Ints, weight: Float, bias: Float) -> Bool:
        """For the cached rows of these numbers [n]."""
        found = np.zeros(len(rows), np.bool_)
        for start in range(0, len(rows), self.width):
            chunk = rows[start : start + self.width]
            x = self.cache.exit_rows(exit_)[chunk].astype(np.float32) @ weight + bias
            tokens = self._full(x).token if head == c.FULL_HEAD else self.heads[head].tokens(x)
            found[start : start + len(chunk)] = tokens == self.cache.final[chunk]
        return found

    def plain(self, exit_: int) -> float:
        """Agreement of the model's own head without a translator, on some of the rows."""
        rows = np.arange(len(self.cache))[:: max(1, len(self.cache) // _PLAIN_ROWS)]
        size = self.cache.exit_rows(exit_).shape[1]
        identity, nothing = np.eye(size, dtype=np.float32), np.zeros(size, np.float32)
        return float(self.agrees(exit_, c.FULL_HEAD, rows, identity, nothing).mean())


def fit_gates(plan: ExitPlan, found: Evidence, judge: Judge, seed: int, progress: Progress) -> list[dict[str, Float]]:
    """The weights of each exit's gates by "<gate>.<part>"."""
    gates: list[dict[str, Float]] = [{} for _ in found.halves]
    if not {"learned", "router", "predictor"} & set(plan.gates):
        return gates
    crossed = [_crossed(halves) for halves in found.halves]
    agrees = []
    for g, maps in enumerate(crossed):
        progress(f"judge exit {g + 1} of {len(crossed)}")
        agrees.append(_judged(judge, g, plan.head, maps))
    held_out = judge.cache.document % _HELD_OUT == 0
    for g in range(len(crossed)):
        if "learned" in plan.gates:
            progress(f"learned gate {g + 1} of {len(crossed)}")
            _put(gates[g], "gate", train_gate(judge.cache.exit_rows(g), agrees[g], held_out, units=UNITS, seed=seed))
    if found.raw is not None:
        progress("router")
        depth = _depths(agrees)
        rows = found.raw.exit_rows(0)
        _put(gates[0], c.ROUTER, train_gate(rows, depth, held_out, units=0, outputs=len(agrees) + 1, seed=seed))
    if "predictor" in plan.gates:
        _fit_predictors(gates, judge, crossed, agrees, held_out, seed, progress)
    return gates


def predictor_features(logits: Float, candidates: Ints, last: Float) -> tuple[Float, Float]:
    """SpecEE's features [N, 3 K] of logits [N, tokens] at `candidates` [N, K]: their logits, their probabilities among
    themselves, and those less `last` [N, K]. Also returns the probabilities."""
    z = np.take_along_axis(logits, candidates, axis=1)
    weights = np.exp(z - z.max(axis=1, keepdims=True))
    local = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.concatenate([z, local, local - last], axis=1), local


def _fit_predictors(
    gates: list[dict[str, Float]], judge: Judge, crossed: list[tuple[Map, Map]], agrees: list[Bool], held_out: Bool,
    seed: int, progress: Progress,
) -> None:  # fmt: skip
    """Each learns that the exit is right and its token one of the candidates, which the first exit chose."""
    head, final, count = judge.heads["shortlist"], judge.cache.final, len(judge.cache)
    candidates = np.zeros((count, c.CANDIDATE_COUNT), np.int64)
    last = np.zeros((count, c.CANDIDATE_COUNT), np.float32)
    for g, maps in enumerate(crossed):
        progress(f"predictor {g + 1} of {len(crossed)}")
        features = np.zeros((count, 3 * c.CANDIDATE_COUNT), np.float32)
        for rows, x in _translated(judge, g, maps):
            logits = head.logits(x)
            if g == 0:
                candidates[rows] = np.argsort(-logits, axis=1, kind="stable")[:, : c.CANDIDATE_COUNT]
            features[rows], last[rows] = predictor_features(logits, candidates[rows], last[rows])
        right = agrees[g] & (head.ids[candidates] == final[:, None]).any(axis=1)
        trained = train_gate(features, right, held_out, units=PREDICTOR_UNITS, activation="relu", seed=seed)
        _put(gates[g], c.PREDICTOR, trained)


def _crossed(halves: tuple[NormalEquations, NormalEquations]) -> tuple[Map, Map]:
    """The maps for even and for odd documents: each is what the others taught."""
    return halves[1].solve(), halves[0].solve()


def _judged(judge: Judge, exit_: int, head: str, maps: tuple[Map, Map]) -> Bool:
    agrees = np.zeros(len(judge.cache), np.bool_)
    for parity, (weight, bias) in enumerate(maps):
        own = np.flatnonzero(judge.cache.document % 2 == parity)
        agrees[own] = judge.agrees(exit_, head, own, weight, bias)
    return agrees


def _translated(judge: Judge, exit_: int, maps: tuple[Map, Map]) -> list[tuple[Ints, Float]]:
    """The cached rows of one exit as its head gets them, a pass at a time, with their numbers."""
    parts = []
    for parity, (weight, bias) in enumerate(maps):
        own = np.flatnonzero(judge.cache.document % 2 == parity)
        for start in range(0, len(own), judge.width):
            rows = own[start : start + judge.width]
            parts.append((rows, judge.cache.exit_rows(exit_)[rows].astype(np.float32) @ weight + bias))
    return parts


def _depths(agrees: list[Bool]) -> Ints:
    """The first exit that agrees, or their number where none does [N]: what a router is to choose."""
    stacked = np.stack([*agrees, np.ones_like(agrees[0])], axis=1)
    return np.asarray(stacked.argmax(axis=1), np.int64)


def _put(gates: dict[str, Float], kind: str, weights: Mapping[str, Float]) -> None:
    gates.update({f"{kind}.{part}": tensor for part, tensor in weights.items()})
