"""Which layer of one model is held against which of another; layers are numbered from 1, as exits are."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError
from eecompile.student.exits import EarlyExit
from eecompile_training.distill_config import LayerMap


def mapped_layers(layers: Sequence[int] | None, schema: EarlyExit, total: int, *, own: bool) -> list[int]:
    """The student's layers that are held against others: those listed, or the exits', and the last where the others
    are not the student's `own`."""
    exits = [e.depth for e in schema.exits]
    return sorted(layers) if layers is not None else exits if own else [*exits, total]


def fixed_map(config: LayerMap, layers: Sequence[int], total: int, others: int) -> dict[int, int]:
    """Each of `layers` of a model of `total` layers to a layer of one of `others`.

    uniform: the same share of depth. last: as far from the end. skip: every (others // total)-th. explicit: as given.
    Raises UsageError for a layer that the other model does not have.
    """
    rules: dict[str, Callable[[int], int]] = {
        "uniform": lambda n: max(1, round(n * others / total)),
        "last": lambda n: others - (total - n),
        "skip": lambda n: n * (others // total),
        "explicit": lambda n: config.pairs.get(n, 0),
    }
    found = {n: rules[config.kind](n) for n in layers}
    wrong = [n for n, other in found.items() if not 1 <= other <= others]
    if wrong:
        mend = f"the other model has layers 1 to {others}; list `layers` or `pairs`"
        raise UsageError(f"the map {config.kind} gives layer {wrong[0]} nothing", where="losses", mend=mend)
    return found


def dynamic_map(distances: NDArray[np.float64]) -> list[int]:
    """For distances [S, T] of S layers, in order, to T others, also in order, the others' numbers (from 0) with the
    least sum of distances of which none is before its forerunner's (FREE's monotone map, by dynamic programming). Ties
    go to the shallower."""
    best, choices = distances[0].copy(), list[NDArray[np.int64]]()
    for row in distances[1:]:
        at = np.array([np.argmin(best[: j + 1]) for j in range(len(best))])
        choices.append(at)
        best = row + best[at]
    found = [int(np.argmin(best))]
    for at in reversed(choices):
        found.append(int(at[found[-1]]))
    return found[::-1]
