"""The rows that are compared, and how a bundle's own engines compute them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.runtime import Bundle
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.walk import Walk
from eecompile.schema import Criterion

Float = NDArray[np.float32]
LOGIT_ROWS = 16  # logits are kept of this many last rows: all of them would not fit for a large vocabulary


@dataclass(frozen=True)
class ModelRows:
    """What a model makes of T tokens.

    hidden: [T, D] after n layers, by n. finished: [T, D], normalised for the head. logits: [K, V] of the last rows,
    at most LOGIT_ROWS of them.
    """

    hidden: Mapping[int, Float]
    finished: Float
    logits: Float


@dataclass(frozen=True)
class ExitRows:
    """What an exit says of T tokens: its rows for the head [T, D], its confidence, and the head's values, each [T].
    more: what its other cheap gates go by [T]."""

    hidden: Float
    confidence: Float
    max_prob: Float
    margin: Float
    entropy: Float
    more: Mapping[Criterion, Float]


@dataclass(frozen=True)
class EngineRows(ModelRows):
    """The same from a bundle's engines, and what its exits say."""

    exits: tuple[ExitRows, ...] = ()


class Walker:
    """Runs tokens through a bundle's engines in passes of chosen widths, as the runtime does. Not thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        self._stairs = Staircase(manifest, bundle.graphs)
        self.rows = manifest.prefill_rows
        self.heads = bundle.heads(self.rows)
        self.head = self.heads[c.FULL_HEAD]
        self._askers = bundle.askers(self.rows)
        self._stairs.watch(self._askers, range(len(self._askers)))

    def prefill_widths(self, length: int) -> list[int]:
        """Passes of a prefill: as wide as they come."""
        return [min(self.rows, length - start) for start in range(0, length, self.rows)]

    def decode_widths(self, length: int) -> list[int]:
        """Passes of a decode with drafts: up to just before the end of a prefill pass, token by token past it, then
        several tokens at a time, then the rest."""
        before = min(max(1, self.rows - 8), max(1, length // 2))
        cap = self.manifest.pending_cap
        widths = [before, *[1] * 16, cap + 1, 2, cap, 3, *self.prefill_widths(length)]
        ends = np.minimum(np.cumsum(widths), length)
        return [int(n) for n in np.diff(ends, prepend=0) if n]

    def walk(
        self, ids: Sequence[int], widths: Sequence[int], *, exits: bool = True, source: Sequence[int] | None = None
    ) -> EngineRows:
        """Every boundary's rows of `ids`, given `source` where there is one, run in passes of `widths` tokens."""
        self._stairs.begin(list(ids if source is None else source))
        passes, start = [], 0
        for width in widths:
            passes.append(self._pass(list(ids[start : start + width]), exits))
            start += width
        hidden = {n: np.concatenate([p.hidden[n] for p in passes]) for n in passes[0].hidden}
        asked = tuple(_joined([p.exits[i] for p in passes]) for i in range(len(passes[0].exits)))
        finished = np.concatenate([p.finished for p in passes])
        return EngineRows(hidden, finished, self.logits(finished[-LOGIT_ROWS:]), asked)

    def logits(self, rows: Float) -> Float:
        """The head's logits [N, V] of normalised rows [N, D], N at most a prefill pass."""
        logits = self.head(rows, logits=True).logits
        assert logits is not None
        copied: Float = logits.copy()
        return copied

    def _pass(self, ids: list[int], exits: bool) -> EngineRows:
        self._stairs.append(ids)
        hidden: dict[int, Float] = {}
        asked: list[ExitRows] = []
        depth, walk = 0, Walk(len(ids))
        for k, step in enumerate(self._stairs.schedule):
            rows = self._stairs.run_step(k).copy()
            depth += self.manifest.caches[step.cache]
            if k + 1 < len(self._stairs.schedule):
                hidden[depth] = rows
            if exits and step.exit is not None:
                asked.append(self._ask(step.exit, rows, walk))
        return EngineRows(hidden, rows, np.empty((0, 0), np.float32), tuple(asked))

    def _ask(self, exit_: int, rows: Float, walk: Walk) -> ExitRows:
        out = self._askers[exit_](rows, walk)
        said = self.heads[self.manifest.exits[exit_].head](out.hidden)
        more: dict[Criterion, Float] = {k: v.copy() for k, v in out.values.items() if k != "learned"}
        values = (said.max_prob.copy(), said.margin.copy(), said.entropy.copy())
        return ExitRows(out.hidden.copy(), out.confidence.copy(), *values, more)


def boundaries(rows: ModelRows) -> Iterator[tuple[str, Float]]:
    """Every boundary by name, shallow first: hidden_<n>, finished, logits."""
    yield from ((f"hidden_{n}", rows.hidden[n]) for n in sorted(rows.hidden))
    yield "finished", rows.finished
    yield "logits", rows.logits


def _joined(parts: Sequence[ExitRows]) -> ExitRows:
    names = ("hidden", "confidence", "max_prob", "margin", "entropy")
    own = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return ExitRows(**own, more={gate: np.concatenate([part.more[gate] for part in parts]) for gate in parts[0].more})
