"""The staircase: one sequence's progress through the schedule, and the passes that move it.

filled[k] tokens have been through step k, filled[0] >= filled[1] >= ...; the tokens between two steps are pending:
their hidden states wait in boundary k. What becomes of them is the K/V rule's to say:

catch_up   they join the next pass that goes that deep; given the tokens, every cache row is what the full model would
           have written, whatever exited when
propagate  a K/V-only pass fills step k's cache from them as they are, and they wait before the next step; approximate
selected   nothing: they never enter deeper caches, whose rows are those of the tokens that came so deep; approximate
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from eecompile.bundle.cycles import CycleGate
from eecompile.bundle.manifest import Manifest
from eecompile.engines.branches import Branches
from eecompile.engines.interface import Buffers, Engine
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.modules import LayerAsker
from eecompile.runtime.pool import Pool, Rows

__all__ = ["LoadedGraphs", "Pool", "Rows", "Staircase"]


@dataclass(frozen=True)
class LoadedGraphs:
    """A bundle's graphs, loaded; shared by all sessions. heads: the small ones, by name. kv: K/V-only ones, by
    segment. factors: LoRA by step and input; none for no step's. cycles: gates that have a step run again, by step.
    branches: what captures a whole step (conditional.py); None with the reason in `unbranched`."""

    embed: Engine
    segments: list[Engine]
    exits: list[Engine]
    head: Engine
    heads: Mapping[str, Engine] = field(default_factory=dict)
    kv: list[Engine | None] = field(default_factory=list)
    encoder: Engine | None = None
    factors: Sequence[Buffers] = ()
    cycles: Mapping[int, CycleGate] = field(default_factory=dict)
    branches: Branches | None = None
    unbranched: str = "the back end is not tensorrt"

    def factors_of(self, step: int) -> Buffers:
        """What step number `step` binds beside rows and caches."""
        return self.factors[step] if self.factors else {}


class Staircase:
    """One sequence: its place in a pool (of its own, by default), its pending rows, and passes over them alone.

    `waiting[k]` rows wait in boundary k, the first `left[k]` of them for a K/V-only pass; `skipped[k]` tokens never go
    through step k. `newest` are the rows that
    the last step computed. `passes` and `layer_rows` count the passes that it took part in and its own rows in them,
    K/V-only ones left out. Not thread-safe.
    """

    def __init__(self, manifest: Manifest, graphs: LoadedGraphs, pool: Pool | None = None) -> None:
        self.pool = Pool(manifest, graphs) if pool is None else pool
        self.schedule, self.caches = self.pool.schedule, self.pool.caches
        self.filled = [0] * len(self.schedule)
        self.waiting = [0] * (len(self.schedule) + 1)  # finished rows, in the last boundary, wait for nothing
        self.left = [0] * len(self.waiting)
        self.skipped = [0] * len(self.schedule)
        self.length = 0  # tokens embedded
        self.passes = self.layer_rows = 0
        self.watchers: dict[int, LayerAsker] = {}
        self.newest: Rows = self.pool.boundary[0][0, :0]
        self.slot = self.pool.join(self)

    @property
    def settled(self) -> int:
        """Tokens, from the first on, that have been through the last step or never will be."""
        return self.filled[-1] + self.skipped[-1]

    @property
    def pending(self) -> int:
        """Tokens that have yet to go through the last step."""
        return self.length - self.settled

    def place(self, k: int) -> tuple[int, int]:
        """Of what waits before step k, the first row's index in its cache, and its position."""
        return self.filled[k], self.filled[k] + self.skipped[k]

    def watch(self, askers: Sequence[ExitAsker], open_exits: Collection[int]) -> None:
        """From now on, let those of the exits that attend to earlier rows see the rows that come by.

        askers: of this pool. `watchers` has those that see, by exit.
        """
        own = {exit_: askers[exit_] for exit_ in open_exits} if askers else {}
        self.watchers = {exit_: asker for exit_, asker in own.items() if isinstance(asker, LayerAsker)}

    def reset(self) -> None:
        """Forget the sequence; for a staircase that has its pool to itself."""
        self.pool.reset()
        self.rewind(0)
        for watcher in self.watchers.values():
            watcher.leave(self.slot)
        self.passes = self.layer_rows = 0

    def begin(self, prompt: list[int]) -> list[int]:
        """Forget the sequence and take up `prompt`; returns the tokens to run first: the prompt's own, or where it is a
        source, which is encoded here, the one that its target begins with."""
        self.reset()
        return self.pool.take_up(prompt)

    def rewind(self, length: int) -> None:
        """Drop every token from position `length` on; nothing may be pending before it, and nothing skipped."""
        if not 0 <= length <= (0 if any(self.skipped) else min(self.filled)):
            raise ValueError(f"length {length} is not one at which nothing is pending")
        self.length = length
        self.filled = [min(f, length) for f in self.filled]
        self.waiting = [0] * len(self.waiting)
        self.left = [0] * len(self.waiting)
        self.skipped = [0] * len(self.schedule)
        for watcher in self.watchers.values():
            watcher.rewind(length, self.slot)

    def append(self, tokens: list[int]) -> None:
        """Embed tokens (at most a pass's rows) into the first boundary."""
        self.pool.embed([self], [tokens])

    def run_step(self, k: int) -> Rows:
        """Run step k on everything that waits before it: as Pool.run_step, returns output rows [R, D], newest last."""
        return self.pool.run_step(k, [self])[0]

    def run_full(self) -> Rows:
        """Run every step on what is pending; returns the finished rows [R, D] of all tokens that were not deep yet."""
        first = next(k for k, n in enumerate(self.waiting) if n)
        for k in range(first, len(self.schedule)):
            self.run_step(k)
        return self.newest

    def prefill(self, tokens: list[int]) -> Rows:
        """Run tokens through every step, a pass's rows at a time; returns the last token's finished row [1, D]."""
        self.pool.make_room(self.length + len(tokens))
        for start in range(0, len(tokens), self.pool.prefill_rows):
            self.append(tokens[start : start + self.pool.prefill_rows])
            self.run_full()
        return self.newest[-1:]

    def put(self, k: int, rows: Rows) -> None:
        """Add rows to those in boundary k."""
        self._store(k, rows)
        self._wait(k, len(rows))

    def leave_at(self, k: int) -> None:
        """Let everything in boundary k go no deeper: the rule propagate, of a token that exits after step k - 1."""
        self.left[k] = self.waiting[k]

    def stop_at(self, k: int) -> None:
        """Let everything in boundary k end there: the rule selected, of a token that exits after step k - 1."""
        for step in range(k, len(self.schedule)):
            self.skipped[step] += self.waiting[k]
        self.waiting[k] = 0

    def propagated(self, k: int) -> None:
        """Note that a K/V-only pass has filled step k's cache from the rows left before it: they wait one step on."""
        n, boundary = self.left[k], self.pool.boundary[k][self.slot]
        self.filled[k] += n
        self.put(k + 1, boundary[:n])
        if k + 1 < len(self.schedule):
            self.left[k + 1] += n
        rest = self.waiting[k] - n
        boundary[:rest] = boundary[n : n + rest].copy()
        self.waiting[k], self.left[k] = rest, 0

    def ran(self, k: int, rows: Rows, layers: int) -> None:
        """Note that step k turned what waited before it into the first of `rows`."""
        self._store(k + 1, rows[: self.waiting[k]])
        self.went(k, layers)
        watcher = self.watchers.get(-1 if (exit_ := self.schedule[k].exit) is None else exit_)
        if watcher is not None:
            watcher.offer(self.newest, self.slot)

    def entered(self, rows: int) -> None:
        """Note that so many tokens were embedded into the first boundary, wherever that lies."""
        self.length += rows
        self._wait(0, rows)

    def went(self, k: int, layers: int) -> None:
        """Note that what waited before step k went through it into the next boundary, wherever that lies."""
        n = self.waiting[k]
        self.waiting[k] = 0
        self.filled[k] += n
        self._wait(k + 1, n)
        self.passes += 1
        self.layer_rows += n * layers

    def _store(self, k: int, rows: Rows) -> None:
        first = self.waiting[k]
        self.newest = self.pool.boundary[k][self.slot, first : first + len(rows)]
        self.newest[:] = rows

    def _wait(self, k: int, rows: int) -> None:
        if k < len(self.schedule):
            self.waiting[k] += rows

    def leave(self) -> None:
        """Give the slot back. The staircase is of no use afterwards."""
        for watcher in self.watchers.values():
            watcher.leave(self.slot)
        self.pool.leave(self)
