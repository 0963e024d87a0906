"""A batch of texts on its way through an encoder's segments: which rows go on, which are frozen, which are gone.

The rows of all texts stand one after the other, in order of text and place. A pass takes exactly the rows that go on
(compaction); frozen rows of the same texts give keys and values. Without compaction a pass takes every row, as a
runtime of fixed shapes would, and what it computes for rows that have left is thrown away: the answers are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.runtime.texts import EncodedText

Float = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
LEAST_ROWS = 2  # a product of one row takes another kernel, whose last bits differ


@dataclass
class PassCounts:
    """Passes of segments, rows through layers that were computed, and rows through layers that only gave keys."""

    passes: int = 0
    layer_rows: int = 0
    frozen_rows: int = 0


class EncoderBatch:
    """The texts of one batch. `hidden` [N, D] is each row's latest state; `text`, `place` [N] say whose it is.

    Memory: N x D float32 and what one pass takes. Not thread-safe.
    """

    def __init__(self, manifest: Manifest, graphs: LoadedGraphs, texts: Sequence[EncodedText]) -> None:
        assert manifest.encoder is not None
        self._graphs, self.counts = graphs, PassCounts()
        lengths = [len(text.ids) for text in texts]
        self.text = np.repeat(np.arange(len(texts)), lengths)
        self.place = np.concatenate([np.arange(n) for n in lengths])
        self.first = np.flatnonzero(self.place == 0)
        self.special = np.concatenate([np.array(text.special, np.bool_) for text in texts])
        inputs: dict[str, NDArray[Any]] = {
            c.TOKEN_IDS: _joined(text.ids for text in texts),
            c.POSITIONS: _joined(positions_of(text.ids, manifest.encoder.padding) for text in texts),
        }
        if manifest.encoder.types:
            inputs[c.TOKEN_TYPES] = _joined(text.types for text in texts)
        self.hidden: Float = graphs.embed.run(inputs)[c.HIDDEN_OUT]

    def run(self, segment: int, going: Bools, *, compaction: bool = True) -> None:
        """Run a segment for the rows `going` [N]; the other rows of their texts are frozen. Updates `hidden`."""
        engine = self._graphs.segments[segment]
        alive = np.zeros(len(self.first), np.bool_)
        alive[self.text[going]] = True
        frozen = np.flatnonzero(alive[self.text] & ~going)
        rows = np.flatnonzero(going) if compaction else np.arange(len(going))
        inputs = pass_inputs(self.text, self.place, rows, frozen)
        inputs |= {c.HIDDEN: _at_least(self.hidden[rows]), c.FROZEN: self.hidden[frozen]}
        out = engine.run(inputs)[c.HIDDEN_OUT]
        if compaction:
            self.hidden[rows] = out[: len(rows)]
        else:
            self.hidden[going] = out[: len(rows)][going]
        self.counts.passes += 1
        self.counts.layer_rows += len(rows) * engine.info.layers
        self.counts.frozen_rows += len(frozen) * engine.info.layers


def pass_inputs(text: Ints, place: Ints, rows: Ints, frozen: Ints) -> dict[str, NDArray[Any]]:
    """The index inputs of a segment's pass (contract.py) over `rows`, of `frozen` ones the keys only.

    text, place [N]: of every row of the batch. A row that is in both is computed, and read as the frozen one.
    """
    numbers = np.cumsum(np.bincount(text[rows], minlength=int(text[-1]) + 1) > 0) - 1  # of the texts in this pass
    owner = numbers[text[rows]]
    count = int(owner[-1]) + 1
    rank = np.arange(len(rows)) - np.searchsorted(owner, np.arange(count))[owner]
    width = max(LEAST_ROWS, int(rank.max()) + 1)
    query_rows = np.zeros((count, width), np.int64)
    query_rows[owner, rank] = np.arange(len(rows))
    places = np.zeros(max(len(rows), LEAST_ROWS), np.int64)
    places[: len(rows)] = owner * width + rank
    length = -(-(int(max(place[rows].max(), place[frozen].max(initial=0))) + 1) // c.CACHE_BUCKET) * c.CACHE_BUCKET
    key_rows, mask = np.zeros((count, length), np.int64), np.zeros((count, length), np.bool_)
    key_rows[owner, place[rows]] = np.arange(len(rows))
    mask[owner, place[rows]] = True
    key_rows[numbers[text[frozen]], place[frozen]] = len(places) + np.arange(len(frozen))
    mask[numbers[text[frozen]], place[frozen]] = True
    return {c.QUERY_ROWS: query_rows, c.ROW_PLACES: places, c.KEY_ROWS: key_rows, c.KEY_MASK: mask}


def positions_of(ids: Sequence[int], padding: int | None) -> list[int]:
    """0, 1, 2, ...; with a padding id p: p + 1, p + 2, ..., where the id p itself stands at p and is not counted."""
    if padding is None:
        return list(range(len(ids)))
    counted = np.array(ids) != padding
    return [int(n) for n in np.where(counted, padding + np.cumsum(counted), padding)]


def _joined(parts: Any) -> Ints:
    return np.concatenate([np.asarray(part, np.int64) for part in parts])


def _at_least(rows: Float) -> Float:
    missing = LEAST_ROWS - len(rows)
    return rows if missing <= 0 else np.concatenate([rows, np.zeros((missing, rows.shape[1]), np.float32)])
