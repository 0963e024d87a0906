"""Decoding one sequence: the loop that walks the staircase in each mode.

full       every token runs every step
confident  a token leaves at the first exit that fires; deeper steps catch up later (calibrated, lossy)
exact      an exit only drafts; the next full-depth pass carries the full model's choice for every pending row, and
           the first that differs rolls back everything after it: the output is mode full's, token for token
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import NumericError
from eecompile.runtime.gates import ExitGates, GateState, choose
from eecompile.runtime.heads import Decisions, Head
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.staircase import Staircase


@dataclass(frozen=True)
class Emitted:
    """A token and the number of layers that ran before it was emitted (exact mode: before it was drafted)."""

    id: int
    depth: int


@dataclass
class Counts:
    """What a request did: drafts made and refused."""

    drafted: int = 0
    rejected: int = 0


class Decoder:
    """One sequence being generated. Not thread-safe.

    gates: its exits. cap: tokens that may be pending after an exit.
    """

    def __init__(
        self, stairs: Staircase, head: Head, gates: ExitGates, *,
        layers: int, exact: bool, cap: int, sampling: Sampling,
    ) -> None:  # fmt: skip
        self.stairs, self.counts = stairs, Counts()
        self.state = GateState(sampling, free=exact)
        self._head, self._gates, self._layers = head, gates, layers
        self._exact, self._cap, self._sampling = exact, cap, sampling
        self._drafts: list[Emitted] = []
        self.last = -1

    @property
    def unverified(self) -> int:
        """Drafts that no full-depth pass has confirmed yet."""
        return len(self._drafts)

    def start(self, prompt: list[int]) -> Emitted:
        """Run the prompt through every step and choose the first token."""
        self.stairs.reset()
        row = self.stairs.prefill(prompt)
        self.state.start(self.stairs.length)
        self.last = self._choose(self._decide(row), 0, self.stairs.length)
        return Emitted(self.last, self._layers)

    def step(self) -> list[Emitted]:
        """Embed the last token and walk down. Returns the tokens that became certain: one; in exact mode any number."""
        self.stairs.append([self.last])
        self.state.begin(self.stairs.length)
        for k, step in enumerate(self.stairs.schedule):
            rows = self.stairs.run_step(k)
            rule = None if step.exit is None else self._gates.rules[step.exit]
            if rule is None or self.stairs.pending > self._cap:
                continue
            [token] = self._gates.ask(rule.exit, rows[-1:], [self.state])
            if token is not None:
                return self._emit(Emitted(token, rule.layer))
        return self._finish(rows)

    def flush(self) -> list[Emitted]:
        """Run what is pending to full depth without a new token; returns the drafts that became certain."""
        return self._finish(self.stairs.run_full()) if self._drafts else []

    def _emit(self, token: Emitted) -> list[Emitted]:
        self.last = token.id
        if not self._exact:
            return [token]
        self.counts.drafted += 1
        self._drafts.append(token)
        return []

    def _finish(self, rows: NDArray[np.float32]) -> list[Emitted]:
        """Choose from finished rows [R, D], of which the last R are this sequence's newest positions."""
        if not self._exact:
            self.last = self._choose(self._decide(rows[-1:]), 0, self.stairs.length)
            self.state.learn(self.stairs.length, self.last)
            return [Emitted(self.last, self._layers)]
        return self._verify(rows)

    def _verify(self, rows: NDArray[np.float32]) -> list[Emitted]:
        """Row i holds the full model's choice for the position after it; keep drafts while they agree with it."""
        decided, first = self._decide(rows), self.stairs.length - len(rows) + 1
        drafts, self._drafts = self._drafts, []
        certain: list[Emitted] = []
        for i in range(len(rows)):
            token = self._choose(decided, i, first + i)
            self.state.learn(first + i, token)
            right = i < len(drafts) and drafts[i].id == token
            certain.append(drafts[i] if right else Emitted(token, self._layers))
            if not right:
                break
        if len(certain) < len(rows):
            self.stairs.rewind(first + len(certain) - 1)
        self.counts.rejected += len(drafts) - sum(a is b for a, b in zip(drafts, certain, strict=False))
        self.last = certain[-1].id
        return certain

    def _decide(self, rows: NDArray[np.float32]) -> Decisions:
        decided = self._head(rows, logits=not self._sampling.greedy)
        if not all(map(math.isfinite, decided.max_prob.tolist())):
            raise NumericError(
                "the model's logits are not finite",
                where=f"position {self.stairs.length}",
                mend="check the checkpoint's weights with `eecompile verify`; float16 weights may overflow",
            )
        return decided

    def _choose(self, decided: Decisions, row: int, position: int) -> int:
        return choose(decided, row, position, self._sampling)
