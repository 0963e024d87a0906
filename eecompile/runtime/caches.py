"""The K/V caches of one sequence: zero-initialised, updated in place, no longer than they need to be.

Attention costs by the length of the buffer it is given, and a slice of a longer buffer would be a copy in every layer
of every pass. So the buffers themselves grow with the sequence, by GROWTH rows or an eighth of what is there; growing
copies, on average, no more than eight rows a token. Lengths that are multiples of the bucket also keep the
vector lanes of a row's softmax the same, so that a row's bits do not depend on how long its cache happens to be.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c

GROWTH = 32  # rows at least, so that bindings, which are made anew, last for as many tokens


class Caches:
    """For each cache of the schedule its tensors by graph name, float32 [1, KV, T, d], inputs and outputs alike.

    T is `rows`. Cache index equals position. Rows beyond the live ones are never attended to; zeros where nothing was
    written keep what is masked finite.
    """

    def __init__(self, layers: Sequence[int], kv_heads: int, head_dim: int) -> None:
        self.rows = 0
        self.tensors: list[dict[str, NDArray[np.float32]]] = [{} for _ in layers]
        self._layers, self._kv_heads, self._head_dim = layers, kv_heads, head_dim

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
                    cache = np.zeros((1, self._kv_heads, rows, self._head_dim), np.float32)
                    if kept:
                        cache[:, :, :kept] = old[name][:, :, :kept]
                    new[name] = new[out] = cache
            self.tensors[k] = new
        self.rows = rows
