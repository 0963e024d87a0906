"""Which slots share a pass.

A pass runs a rectangle: contiguous slots, and as many rows each as the slot with most of them has. Slots between that
have nothing to run, and rows that fill others up, are computed for nothing; a pass of its own for each group of
neighbours reads the weights once more instead. The plan is the cheapest by that one trade.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from eecompile.bundle.manifest import Profile

Waiting: TypeAlias = tuple[tuple[int, int], ...]  # (slot, rows), slots ascending
Range: TypeAlias = tuple[int, int, int]  # slots from, to before; rows of each
PASS_ROWS = 12.0  # rows that cost as much as the pass itself, where nothing was measured


def pass_rows(profiles: Sequence[Profile]) -> float:
    """How many rows' arithmetic costs as much as reading a segment's weights, by the first profile (1 to 64)."""
    times: dict[int, float] = {}
    for p in profiles[0].passes if profiles else ():
        if p.graph.startswith("segment_"):
            times[p.rows] = times.get(p.rows, 0.0) + p.seconds
    if 1 not in times or len(times) < 2:
        return PASS_ROWS
    few = sorted(times)[-2 if len(times) > 2 else -1]  # the widest is a prefill's, which is bound by arithmetic
    return rows_of_a_pass(times[1], times[few], few)


def rows_of_a_pass(one: float, several: float, rows: int) -> float:
    """How many rows' arithmetic costs as much as the pass itself, from the seconds of one row and of several (`rows` of
    them)."""
    row = (several - one) / (rows - 1)
    return min(64.0, max(1.0, (one - row) / row)) if row > 0 else 64.0


@lru_cache(maxsize=4096)
def plan_passes(waiting: Waiting, each_pass: float, most: int) -> tuple[tuple[Range, ...], float]:
    """The cheapest passes that run all of `waiting`, and their cost in rows.

    each_pass: what a pass costs beside its rows. most: rows that a pass may have, padding included; a single slot's
    always fit.
    """
    best: list[tuple[float, tuple[Range, ...]]] = [(0.0, ())]
    for end in range(1, len(waiting) + 1):
        options = []
        rows = 0
        for start in range(end - 1, -1, -1):
            rows = max(rows, waiting[start][1])
            first, last = waiting[start][0], waiting[end - 1][0] + 1
            if (last - first) * rows > most and end - start > 1:
                break
            cost, before = best[start]
            options.append((cost + each_pass + (last - first) * rows, (*before, (first, last, rows))))
        best.append(min(options))
    return best[-1][1], best[-1][0]


def riders(walking: Waiting, others: Waiting, each_pass: float, most: int) -> bool:
    """Whether `others`, whose rows wait at this step too, should be run along with `walking`.

    Their rows have to run some day; run now they save a pass, at the price of the padding that they cause.
    """
    if not walking or not others:
        return False
    together = plan_passes(tuple(sorted((*walking, *others))), each_pass, most)[1]
    alone = plan_passes(walking, each_pass, most)[1]
    return together - sum(rows for _, rows in others) <= alone + each_pass
