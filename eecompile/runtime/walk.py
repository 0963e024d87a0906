"""What the exits have said of a token on its way down, where a deeper exit goes by it; and the rules for that.

A walk belongs to one token at one position and begins anew for the next, so that it depends on the emitted tokens
alone: rolling tokens back needs no undoing here. It is kept for N rows at once: N sequences, or N tokens of a trace.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Ints = NDArray[np.int64]
Bool = NDArray[np.bool_]
_NONE = -2  # no exit, nor the one before any
_UNCHOSEN = -1  # what the exit graph takes for "no candidates yet"
_MARKS = ("at", "voted", "routed")
_ARRAYS = ("previous", "token", "streak", "choices", "candidates", "local")


class Walk:
    """What exits said of `rows` tokens, one a row. An array is None until an exit has written it.

    previous [N, D]: rows at exit `at` [N]. token, streak [N]: what exit `voted` [N] would answer, and how many exits
    in a row, it included, answer that. choices [N, C]: logits of the router of exit `routed` [N]. candidates, local
    [N, K]: the predictor's (contract.py).
    """

    __slots__ = ("at", "candidates", "choices", "local", "previous", "routed", "streak", "token", "voted")

    def __init__(self, rows: int = 1) -> None:
        self.at, self.voted, self.routed = (np.full(rows, _NONE, np.int64) for _ in range(3))
        self.previous: Float | None = None
        self.token: Ints | None = None
        self.streak: Ints | None = None
        self.choices: Float | None = None
        self.candidates: Ints | None = None
        self.local: Float | None = None

    def keep(self, exit_: int, rows: Float) -> None:
        """Remember the rows at an exit."""
        self.previous = rows.copy()
        self.at[:] = exit_

    def before(self, exit_: int) -> Float | None:
        """The rows at the exit just before `exit_` [N, D], zeros where they were not kept."""
        if self.previous is None:
            return None
        return np.where((self.at == exit_ - 1)[:, None], self.previous, np.float32(0))

    def vote(self, exit_: int, tokens: Ints) -> Ints:
        """Take exit `exit_`'s answers [N], negative where it has none; returns the streaks [N]."""
        same = (self.voted == exit_ - 1) & (tokens == self.token) & (tokens >= 0)
        self.streak = streaks(np.zeros(len(tokens), np.int64) if self.streak is None else self.streak, same)
        self.token = tokens.copy()
        self.voted[:] = exit_
        return self.streak

    def route(self, exit_: int) -> Float:
        """How sure its router is that a token may stop at exit `exit_` [N]; NaN where none was asked."""
        source = int(self.routed[0])
        if self.choices is not None and source >= 0 and (self.routed == source).all():
            return router_scores(self.choices, exit_ - source)
        scores = np.full(len(self.routed), np.nan, np.float32)
        for source in np.unique(self.routed[self.routed >= 0]):
            assert self.choices is not None
            own = self.routed == source
            scores[own] = router_scores(self.choices[own], exit_ - int(source))
        return scores


def joined(walks: Sequence[Walk]) -> Walk:
    """The walks of several sequences as one; a row that lacks an array has zeros there, and marks that say so."""
    if len(walks) == 1:
        return walks[0]
    whole = Walk(len(walks))
    for name in _MARKS:
        setattr(whole, name, np.concatenate([getattr(w, name) for w in walks]))
    for name in _ARRAYS:
        parts = [getattr(w, name) for w in walks]
        like = next((part for part in parts if part is not None), None)
        if like is not None:
            fill = np.full_like(like, _UNCHOSEN if name == "candidates" else 0)
            setattr(whole, name, np.concatenate([fill if part is None else part for part in parts]))
    return whole


def parted(whole: Walk, walks: Sequence[Walk]) -> None:
    """Give each of the walks its row of `whole`."""
    if len(walks) == 1:
        return
    for i, walk in enumerate(walks):
        for name in (*_MARKS, *_ARRAYS):
            array = getattr(whole, name)
            setattr(walk, name, None if array is None else array[i : i + 1])


def streaks(streak: Ints, same: Bool) -> Ints:
    """PABEE's counter (Zhou et al. 2020), counted from one: how many exits in a row agree, this one
    included [N]. same [N]: whether it agrees with the exit before (`agree`)."""
    return np.where(same, streak + 1, 1)


def agree(previous: NDArray[np.floating], current: NDArray[np.floating], tau: float | None = None) -> Bool:
    """Whether two exits agree [N]: on the arg-max of scores [N, classes]; in regression, with `tau`, by values [N] that
    are less than tau apart. NaN agrees with nothing."""
    if tau is None:
        finite = np.isfinite(previous).all(axis=-1) & np.isfinite(current).all(axis=-1)
        return np.asarray(finite & (previous.argmax(axis=-1) == current.argmax(axis=-1)))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(current - previous) < tau)


def router_scores(choices: Float, depth: int) -> Float:
    """How much more a router favours one of the choices 0..depth, which is to have stopped by now, to going deeper [N].

    choices: its logits [N, C]. sigmoid(best of them - best of the deeper ones): above .5 exactly where the router's
    first choice is to stop by now (token-choice routing of Mixture-of-Recursions, Bae et al. 2025), rising with depth.
    Computed in double, so that it is the same number wherever it is computed.
    """
    shallow, deeper = choices[:, : depth + 1].max(axis=1), choices[:, depth + 1 :].max(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = (deeper - shallow).astype(np.float32).astype(np.float64)
        return np.asarray(1 / (1 + np.exp(gap)), np.float32)
