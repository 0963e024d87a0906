"""The K/V caches of a pool of slots: zero-initialised, updated in place, no longer than they need to be.

Attention costs by the length of the buffer it is given, and a slice of a longer buffer would be a copy in every layer
of every pass. So the buffers themselves grow with the longest sequence, by GROWTH rows or an eighth of what is there;
growing copies, on average, no more than eight rows a token. Lengths that are multiples of the bucket also keep the
vector lanes of a row's softmax the same, so that a row's bits do not depend on how long its cache happens to be.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c

GROWTH = 32  # rows at least, so that bindings, which are made anew, last for as many tokens


class Caches:
    """For each cache of the schedule its tensors by graph name, float32 [slots, KV, T, d], inputs and outputs alike.

    T is `rows`. Cache index equals position. Rows beyond a slot's live ones are never attended to; zeros where nothing
    was written keep what is masked finite.
    """

    def __init__(self, layers: Sequence[int], kv_heads: int, head_dim: int, slots: int = 1) -> None:
        self.rows = 0
        self.tensors: list[dict[str, NDArray[np.float32]]] = [{} for _ in layers]
        self._layers, self._kv_heads, self._head_dim, self._slots = layers, kv_heads, head_dim, slots

    def make_room(self, rows: int) -> bool:
        """Have room for `rows` rows and the one of padding that fused attention writes behind them.

        Returns whether the tensors were replaced, so that bindings are stale.
        """
        rows += 1
        if rows <= self.rows:
            return False
        self.resize(max(rows, self.rows + max(self.rows // 8, GROWTH)))
        return True

    def resize(self, rows: int) -> None:
        """Make the tensors `rows` long, rounded up to the bucket, keeping what fits. 0 frees them."""
        rows = -(-rows // c.CACHE_BUCKET) * c.CACHE_BUCKET
        kept = min(rows, self.rows)
        for k, layers in enumerate(self._layers):
            old, new = self.tensors[k], {}
            for layer in range(layers):
                for kind in ("key", "value"):
                    name, out = c.cache_name(kind, layer), c.cache_out_name(kind, layer)
                    cache = np.zeros((self._slots, self._kv_heads, rows, self._head_dim), np.float32)
                    if kept:
                        cache[:, :, :kept] = old[name][:, :, :kept]
                    new[name] = new[out] = cache
            self.tensors[k] = new
        self.rows = rows

    def of_slots(self, cache: int, first: int, last: int) -> dict[str, NDArray[np.float32]]:
        """The tensors of one cache for the slots from `first` to before `last`: contiguous views."""
        return {name: tensor[first:last] for name, tensor in self.tensors[cache].items()}

    def clear(self, slot: int, rows: int) -> None:
        """Make a slot's first rows zeros again: what is not finite cannot be masked."""
        for tensors in self.tensors:
            for name, tensor in tensors.items():
                if not name.endswith("_out"):
                    tensor[slot, :, :rows] = 0

    def move(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of a slot over those of another."""
        for tensors in self.tensors:
            for name, tensor in tensors.items():
                if not name.endswith("_out"):
                    tensor[target, :, :rows] = tensor[source, :, :rows]
