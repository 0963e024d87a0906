"""What every exit would say of texts on their way to full depth: the table that calibration, bench and verification
read.

Nothing leaves here. For exits per text that is all there is to know, since no text changes another; exits per token
change what a token's neighbours see, so that calibration runs those as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.encode import EncoderBatch
from eecompile.runtime.labels import AskedExit, Said
from eecompile.runtime.texts import EncodedText

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TextTrace:
    """A batch of texts with U units (the texts, or all of their rows where each token has a label).

    text [U]: each unit's text; special [U]: whether it is a special token's row. exits: what each said. logits [U, C]:
    the head's. boundaries: every row's state [N, D] before the first and after each step; only where asked for.
    """

    text: NDArray[np.int64]
    special: NDArray[np.bool_]
    exits: list[Said]
    logits: Float
    boundaries: list[Float]


class TextTracer:
    """Traces batches of texts through an open bundle of an encoder. Thread-safe."""

    def __init__(self, bundle: Bundle, *, boundaries: bool = False) -> None:
        self._bundle, self._keep = bundle, boundaries
        task = bundle.manifest.task
        self._per_row = task == c.TOKENS
        self._asked = [AskedExit(engine, task) for engine in bundle.graphs.exits]
        self._head = AskedExit(bundle.graphs.head, task)

    def trace(self, texts: Sequence[EncodedText]) -> TextTrace:
        """Trace one batch."""
        walk = EncoderBatch(self._bundle.manifest, self._bundle.graphs, texts)
        everything = np.ones(len(walk.text), np.bool_)
        units = np.arange(len(walk.text)) if self._per_row else walk.first
        kept, exits = [walk.hidden.copy()] if self._keep else [], []
        for step in self._bundle.manifest.schedule:
            walk.run(step.segment, everything)
            if self._keep:
                kept.append(walk.hidden.copy())
            if step.exit is not None:
                exits.append(self._asked[step.exit](walk.hidden[units], None, None))
        special = walk.special[units] if self._per_row else np.zeros(len(units), np.bool_)
        return TextTrace(walk.text[units], special, exits, self._head(walk.hidden[units], None, None).logits, kept)
