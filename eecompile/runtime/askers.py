"""One exit's graph, bound to buffers: adapter and cheap gates over a few rows, numpy in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.engines.interface import Buffers, Engine, Memory, Pass
from eecompile.runtime.walk import Walk
from eecompile.schema import Criterion
from eecompile.shapes import ExitShape

Float = NDArray[np.float32]
_OUTPUTS: Mapping[Criterion, str] = {
    "learned": c.CONFIDENCE, "saturation": c.SATURATION, "predictor": c.PREDICTION,
}  # fmt: skip


@dataclass(frozen=True)
class ExitSaid:
    """What an exit says of N rows, before any head: views that the next pass of the same width overwrites.

    hidden [N, D]: ready for a head. values: what each cheap gate goes by [N]. candidates: a predictor's tokens [N, K].
    """

    hidden: Float
    values: Mapping[Criterion, Float]
    candidates: NDArray[np.int64] | None = None

    @property
    def confidence(self) -> Float:
        """The learned gate's values, ones without that gate."""
        return self.values.get("learned", np.ones(len(self.hidden), np.float32))


class ExitAsker:
    """One exit over up to `rows` rows. Not thread-safe; the engine is shared.

    exits: all exits of the bundle, of which this is number `exit_`. weights: of its gates, by graph input.
    """

    def __init__(
        self, engine: Engine, exits: Sequence[ExitShape], exit_: int, hidden: int, rows: int,
        weights: Mapping[str, Float],
    ) -> None:  # fmt: skip
        self._engine, self._exit, self._weights = (
            engine,
            exit_,
            {n: engine.memory.constant(w) for n, w in weights.items()},
        )
        self._shape = exits[exit_]
        after = exits[exit_ + 1] if exit_ + 1 < len(exits) else None
        self._keeps = after is not None and "saturation" in after.gates
        self._buffers = row_buffers(self._shape, hidden, rows, engine.memory)
        self._bound: dict[int, tuple[Pass, Mapping[str, NDArray[Any]], ExitSaid]] = {}

    def __call__(self, rows: Float, walk: Walk | None = None, slots: Sequence[int] = (0,)) -> ExitSaid:
        """Ask about hidden rows [N, D]. walk: what exits before it said of them, which is brought up to date; None
        where there were none. slots: whose rows they are, for exits that attend to earlier ones (modules.py)."""
        walk = Walk(len(rows)) if walk is None else walk
        run, view, said = self._binding(len(rows))
        view[c.HIDDEN][:] = rows
        self._remind(walk, view)
        run()
        self._note(walk, rows, view)
        return self._routed(said, walk)

    def bind(self, buffers: Buffers) -> Pass:
        """A pass of the exit's graph over buffers of one's own, with its gates' weights."""
        return self._engine.bind({**buffers, **self._weights})

    def _remind(self, walk: Walk, view: Mapping[str, NDArray[Any]]) -> None:
        """Set the inputs that are about what exits before this one said."""
        if c.PREVIOUS in view:
            before = walk.before(self._exit)
            view[c.PREVIOUS][:] = 0 if before is None else before
        if c.CANDIDATES in view:
            view[c.CANDIDATES][:] = -1 if walk.candidates is None else walk.candidates
            view[c.LAST_LOCAL][:] = 0 if walk.local is None else walk.local

    def _routed(self, said: ExitSaid, walk: Walk) -> ExitSaid:
        if "router" not in self._shape.gates:
            return said
        return ExitSaid(said.hidden, {**said.values, "router": walk.route(self._exit)}, said.candidates)

    def _said(self, view: Mapping[str, NDArray[Any]]) -> ExitSaid:
        values = {gate: view[name] for gate, name in _OUTPUTS.items() if gate in self._shape.gates}
        return ExitSaid(view[c.EXIT_HIDDEN], values, view.get(c.CANDIDATE_TOKENS))

    def _note(self, walk: Walk, rows: Float, view: Mapping[str, NDArray[Any]]) -> None:
        if self._keeps:
            walk.keep(self._exit, rows)
        if c.CHOICES in view:
            walk.choices, walk.routed[:] = view[c.CHOICES].copy(), self._exit
        if c.CANDIDATES in view:
            walk.candidates, walk.local = view[c.CANDIDATES_OUT].copy(), view[c.LOCAL].copy()

    def _binding(self, n: int) -> tuple[Pass, Mapping[str, NDArray[Any]], ExitSaid]:
        if n not in self._bound:
            view = {name: buffer[:n] for name, buffer in self._buffers.items()}
            self._bound[n] = self.bind(view), view, self._said(view)
        return self._bound[n]


def row_buffers(shape: ExitShape, hidden: int, rows: int, memory: Memory) -> dict[str, NDArray[Any]]:
    """A buffer of `rows` rows for every input and output that has them."""
    floats: dict[str, tuple[int, ...]] = {c.HIDDEN: (hidden,), c.EXIT_HIDDEN: (hidden,)}
    integers: dict[str, tuple[int, ...]] = {}
    floats |= {name: () for gate, name in _OUTPUTS.items() if gate in shape.gates}
    if "saturation" in shape.gates:
        floats[c.PREVIOUS] = (hidden,)
    if shape.router is not None:
        floats[c.CHOICES] = (shape.router.choices,)
    if shape.predictor is not None:
        floats |= {c.LAST_LOCAL: (c.CANDIDATE_COUNT,), c.LOCAL: (c.CANDIDATE_COUNT,)}
        integers = dict.fromkeys((c.CANDIDATES, c.CANDIDATES_OUT, c.CANDIDATE_TOKENS), (c.CANDIDATE_COUNT,))
    made: dict[str, NDArray[Any]] = {name: memory.rows((rows, *rest)) for name, rest in floats.items()}
    return made | {name: memory.rows((rows, *rest), np.int64) for name, rest in integers.items()}
