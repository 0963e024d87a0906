"""Where a student is cut, and the schedule: which piece runs when, and the exit that is asked after it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from eecompile.student.cycles import CycleSpec
from eecompile.student.loops import Loops


@dataclass(frozen=True)
class Visit:
    """One step of the schedule: a run of piece `piece`, whose first layer runs as layer `first`.

    loop: which, in a recursive student's block. exit: the index of the exit that is asked afterwards.
    """

    piece: int
    first: int
    loop: int | None
    exit: int | None


@dataclass(frozen=True)
class Plan:
    """`pieces` are runs of the checkpoint's own layers, a segment graph each; `visits` is the schedule.

    Where a block ends the model, the last piece has no layers and only normalises: the block's own graph cannot, since
    its earlier runs must not.
    """

    pieces: list[range]
    visits: list[Visit]


def plan_segments(
    layers: int, exits: Sequence[int], loops: Loops | None = None, cycles: Sequence[CycleSpec] = ()
) -> Plan:
    """Cut `layers` own layers at the exits (numbers of layers run, ascending) and at the edges of repeated blocks."""
    if loops is None:
        pieces = cuts(layers, [*exits, *(edge for cycle in cycles for edge in (cycle.first, cycle.layer))])
        if any(cycle.layer == layers for cycle in cycles):
            pieces.append(range(layers, layers))
        return Plan(pieces, _visits(pieces, list(range(len(pieces))), exits, None))
    end = loops.prelude + loops.block
    pieces = cuts(layers, [loops.prelude, end, *(loops.own_layer(n) for n in exits)])
    block = [k for k, piece in enumerate(pieces) if loops.prelude <= piece.start < end]
    order = [*range(block[0]), *block * loops.loops, *range(block[-1] + 1, len(pieces))]
    if end == layers:
        order.append(len(pieces))
        pieces.append(range(layers, layers))
    return Plan(pieces, _visits(pieces, order, exits, loops))


def cuts(layers: int, at: Sequence[int]) -> list[range]:
    """The layers of each piece: [18, 22] of 30 gives 0..17, 18..21, 22..29."""
    return [range(a, b) for a, b in itertools.pairwise(sorted({0, *at, layers}))]


def _visits(pieces: list[range], order: list[int], exits: Sequence[int], loops: Loops | None) -> list[Visit]:
    visits, depth = [], 0
    for k in order:
        first, depth = depth, depth + len(pieces[k])
        loop = loops.loop(first) if loops is not None and pieces[k] else None
        asked = exits.index(depth) if pieces[k] and depth in exits else None
        visits.append(Visit(k, first, loop, asked))
    return visits
