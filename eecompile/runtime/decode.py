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
from eecompile.runtime.heads import Decisions, ExitAsker, ExitRule, Head
from eecompile.runtime.sampling import Sampling, sample
from eecompile.runtime.staircase import Staircase


@dataclass(frozen=True)
class Emitted:
    """A token and the number of layers that ran before it was emitted (exact mode: before it was drafted)."""

    id: int
    depth: int


@dataclass
class Counts:
    """What a request did: drafts made and refused, heads run for exits that then did not fire."""

    drafted: int = 0
    rejected: int = 0
    heads: int = 0
    declined: int = 0


class Decoder:
    """One sequence being generated. Not thread-safe.

    rules: per exit, or None where it stays closed. cap: tokens that may be pending after an exit.
    """

    def __init__(
        self, stairs: Staircase, head: Head, askers: list[ExitAsker], rules: list[ExitRule | None], *,
        layers: int, exact: bool, cap: int, sampling: Sampling,
    ) -> None:  # fmt: skip
        self.stairs, self.counts = stairs, Counts()
        self._head, self._askers, self._rules, self._layers = head, askers, rules, layers
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
        self.last = self._choose(self._decide(row), 0, self.stairs.length)
        return Emitted(self.last, self._layers)

    def step(self) -> list[Emitted]:
        """Embed the last token and walk down. Returns the tokens that became certain: one; in exact mode any number."""
        self.stairs.append([self.last])
        for k, step in enumerate(self.stairs.schedule):
            rows = self.stairs.run_step(k)
            rule = None if step.exit is None else self._rules[step.exit]
            if rule is None or self.stairs.pending > self._cap:
                continue
            token = self._ask(rule, rows[-1:])
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

    def _ask(self, rule: ExitRule, row: NDArray[np.float32]) -> int | None:
        """The token that this exit emits, or None where a gate says continue."""
        hidden, confidence = self._askers[rule.exit](row)
        if not rule.passes_cheap(float(confidence[0])):
            return None
        self.counts.heads += 1
        decided = self._head(hidden, rule.bounds, logits=not self._sampling.greedy)
        if not decided.exit_flag[0]:
            self.counts.declined += 1
            return None
        return self._choose(decided, 0, self.stairs.length)

    def _finish(self, rows: NDArray[np.float32]) -> list[Emitted]:
        """Choose from finished rows [R, D], of which the last R are this sequence's newest positions."""
        if not self._exact:
            self.last = self._choose(self._decide(rows[-1:]), 0, self.stairs.length)
            return [Emitted(self.last, self._layers)]
        return self._verify(rows)

    def _verify(self, rows: NDArray[np.float32]) -> list[Emitted]:
        """Row i holds the full model's choice for the position after it; keep drafts while they agree with it."""
        decided, first = self._decide(rows), self.stairs.length - len(rows) + 1
        drafts, self._drafts = self._drafts, []
        certain: list[Emitted] = []
        for i in range(len(rows)):
            token = self._choose(decided, i, first + i)
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
        if decided.logits is None:
            return int(decided.token[row])
        return sample(decided.logits[row], position, self._sampling)
