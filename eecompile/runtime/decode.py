"""Decoding: the loop that walks sequences down the staircase in each mode, one of them or many at once.

full       every token runs every step
confident  a token leaves at the first exit that fires; deeper steps catch up later (calibrated, lossy)
exact      an exit only drafts; the next full-depth pass carries the full model's choice for every pending row, and
           the first that differs rolls back everything after it: the output is mode full's, token for token

In a step of many, each token leaves where its own exit fires and goes on where it does not: none waits for another, and
what a sequence emits is what it would emit alone. A sequence that has left may have its pending rows run along in the
passes of those that go deeper (plan.riders).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eecompile.errors import NumericError
from eecompile.runtime.gates import ExitGates, GateState, choose
from eecompile.runtime.heads import Decisions, Head
from eecompile.runtime.plan import riders
from eecompile.runtime.staircase import Rows, Staircase


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


class Continuation:
    """One sequence being generated.

    state: its exits' rules and what they have to remember. kv: the rule for skipped layers. cap: tokens in a row that
    may leave early with catch_up; with propagate, tokens that may wait for their K/V-only passes. `certain` are the
    tokens that the last step made certain, `fault` is why there will be no more.
    """

    def __init__(self, stairs: Staircase, state: GateState, *, exact: bool, cap: int, kv: str = "catch_up") -> None:
        self.stairs, self.state, self.exact, self.cap, self.sampling = stairs, state, exact, cap, state.sampling
        self.counts, self.last = Counts(), -1
        self.drafts: list[Emitted] = []
        self.certain: list[Emitted] = []
        self.fault: NumericError | None = None
        self.early = 0  # tokens since the last one from full depth
        self.kv = kv

    def may_exit(self, exit_: int) -> bool:
        """Whether this exit is to be asked: it has a rule, and with catch_up not too many tokens have left early in a
        row. (With the others any number may: their rows never need a pass of their own.)"""
        return self.state.rules[exit_] is not None and (self.early < self.cap or self.kv != "catch_up")

    def leave(self, token: Emitted, step: int) -> None:
        """Emit `token` from the exit after `step`; in exact mode it is a draft."""
        self.last = token.id
        self.early += 1
        if self.kv == "propagate":
            self.stairs.leave_at(step + 1)
        if self.kv == "selected":
            self.stairs.stop_at(step + 1)
        if not self.exact:
            self.certain = [token]
            return
        self.counts.drafted += 1
        self.drafts.append(token)


class Decoder:
    """Steps sequences of one pool, in the same passes. Not thread-safe.

    head, gates: over as many rows as the sequences have in a pass. layers: L, the depth of a token from the last.
    """

    def __init__(self, head: Head, gates: ExitGates, *, layers: int) -> None:
        self._head, self._gates, self._layers = head, gates, layers

    def start(self, those: Sequence[Continuation]) -> None:
        """Choose the first token of sequences whose prompts have just run through every step."""
        for one in those:
            one.state.start(one.stairs.length)
        self._emit(those, [one.stairs.newest[-1:] for one in those])

    def step(self, those: Sequence[Continuation]) -> None:
        """Embed each one's last token and walk down. Afterwards `certain` has the tokens that became certain: one; in
        exact mode any number."""
        if not those:
            return
        for one in those:
            one.certain = []
        pool = those[0].stairs.pool
        self._make_room(those)
        pool.embed([one.stairs for one in those], [[one.last] for one in those])
        for one in those:
            one.state.begin(one.stairs.length)
        walking, left = list(those), list[Continuation]()
        for k, step in enumerate(pool.schedule):
            riding = self._riding(k, walking, left) if left else []
            pool.run_step(k, [one.stairs for one in (*walking, *riding)])
            if step.exit is not None:
                gone = self._ask_exit(k, step.exit, walking)
                if gone:
                    left += gone
                    walking = [one for one in walking if one not in gone]
                    if not walking:
                        return
        self._finish([*walking, *riding])

    def flush(self, those: Sequence[Continuation]) -> None:
        """Run what is pending to full depth without new tokens, so that drafts become certain."""
        those = [one for one in those if one.drafts]
        if not those:
            return
        pool = those[0].stairs.pool
        for k in range(len(pool.schedule)):
            waiting = [one.stairs for one in those if one.stairs.waiting[k]]
            if waiting:
                pool.run_step(k, waiting)
        self._finish(those)

    def _make_room(self, those: Sequence[Continuation]) -> None:
        """K/V-only passes for sequences with as many left rows as may wait."""
        full = [one.stairs for one in those if one.kv == "propagate" and one.stairs.pending >= one.cap]
        for k in range(len(those[0].stairs.schedule)) if full else ():
            full[0].pool.fill(k, full)

    def _riding(self, k: int, walking: list[Continuation], left: list[Continuation]) -> list[Continuation]:
        """Those that have left and whose rows before step k are worth running along; propagated ones are filled in."""
        if any(one.stairs.left[k] for one in walking):
            walking[0].stairs.pool.fill(k, [one.stairs for one in (*walking, *left)])
        others = [one for one in left if one.stairs.waiting[k] and one.kv != "propagate"]
        pool = walking[0].stairs.pool
        ours, theirs = (pool.waiting(k, [one.stairs for one in group]) for group in (walking, others))
        return others if riders(ours, theirs, pool.each_pass, pool.most) else []

    def _ask_exit(self, k: int, exit_: int, walking: list[Continuation]) -> list[Continuation]:
        """Ask the exit after step k about the newest row of each that may leave there; returns those that did."""
        asked = [one for one in walking if one.may_exit(exit_)]
        if not asked:
            return []
        rows = asked[0].stairs.newest[-1:]
        if len(asked) > 1:
            rows = np.concatenate([one.stairs.newest[-1:] for one in asked])
        gone, slots = [], [one.stairs.slot for one in asked]
        for one, token in zip(asked, self._gates.ask(exit_, rows, [one.state for one in asked], slots), strict=True):
            if token is not None:
                one.leave(Emitted(token, self._gates.layer(exit_)), k)
                gone.append(one)
        return gone

    def _finish(self, those: list[Continuation]) -> None:
        """Emit from finished rows. What rode along is verified where it was drafted; otherwise nobody asks for it."""
        emitting = [one for one in those if one.exact or not one.certain]
        self._emit(emitting, [one.stairs.newest if one.exact else one.stairs.newest[-1:] for one in emitting])

    def _emit(self, those: Sequence[Continuation], rows: list[Rows]) -> None:
        """Choose from each one's finished rows [R, D]: R is 1, or as many as exact mode verifies."""
        if not those:
            return
        stacked = rows[0] if len(rows) == 1 else np.concatenate(rows)
        decided = self._head(stacked, logits=not all(one.sampling.greedy for one in those))
        finite = list(map(math.isfinite, decided.max_prob.tolist()))
        first = 0
        for one, mine in zip(those, rows, strict=True):
            self._verify(one, decided, first, finite[first : first + len(mine)])
            first += len(mine)

    def _verify(self, one: Continuation, decided: Decisions, at: int, finite: list[bool]) -> None:
        """Row at + i holds the full model's choice for the position after it; keep drafts while they agree with it.

        In a mode without drafts this is the one token that the one row chooses. What follows a wrong draft may be
        anything, and is not looked at.
        """
        count = len(finite)
        first = one.stairs.settled - count + 1
        drafts, right, certain = one.drafts, 0, list[Emitted]()
        for i in range(count):
            if not finite[i]:
                one.fault = not_finite(first + i)
                return
            token = choose(decided, at + i, first + i, one.sampling)
            one.state.learn(first + i, token)
            if i < len(drafts) and drafts[i].id == token:
                certain.append(drafts[i])
                right += 1
                continue
            certain.append(Emitted(token, self._layers))
            break
        one.certain = [*one.certain, *certain]  # a flush after a step adds to what the step made certain
        if right == count:  # of drafts alone: what was drafted last goes on
            one.drafts = drafts[right:]
            one.early = len(one.drafts)
            return
        if len(certain) < count or len(drafts) > right:
            one.stairs.rewind(first + len(certain) - 1)
        one.counts.rejected += len(drafts) - right
        one.drafts, one.early, one.last = [], 0, certain[-1].id


def not_finite(position: int) -> NumericError:
    """The fault of logits from which nothing can be chosen."""
    return NumericError(
        "the model's logits are not finite",
        where=f"position {position}",
        mend="check the checkpoint's weights with `eecompile verify`; float16 weights may overflow",
    )
