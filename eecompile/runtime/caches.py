"""The K/V caches of a pool of slots: zero-initialised, updated in place, and on the CPU no longer than they need to be.

Attention costs by the length of the buffer it is given, and a slice of a longer buffer would be a copy in every layer
of every pass. So the buffers themselves grow with the longest sequence, by GROWTH rows or an eighth of what is there;
growing copies, on average, no more than eight rows a token. Lengths that are multiples of the bucket also keep the
vector lanes of a row's softmax the same, so that a row's bits do not depend on how long its cache happens to be.

A memory with a length of its own (interface.py) has every cache that long from the start: an address that never changes
is what a captured graph of GPU work needs, and there a mask costs less than a copy.
"""

from collections.abc import Sequence

from eecompile import contract as c
from eecompile.engines.interface import HOST, Cache, Memory, shape_of
from eecompile.schema import GraphInfo

GROWTH = 64  # rows at least, so that bindings, which are made anew, last for as many tokens


class Caches:
    """For each cache of the schedule its tensors by graph name, [slots, KV, T, ..], inputs and outputs alike.

    graphs: for each cache the graph that writes it, whose inputs say what the tensors are: those with a length T.
    memory: of the engines that write them.
    T is `lengths[k]` of cache k, `rows` that of the longest. Cache index equals position, but where the rule selected
    leaves rows out. Rows beyond a slot's live ones are never attended to; zeros where nothing was written keep what is
    masked finite.
    """

    def __init__(self, graphs: Sequence[GraphInfo], slots: int = 1, memory: Memory = HOST) -> None:
        self.lengths = [0] * len(graphs)
        self.tensors: list[dict[str, Cache]] = [{} for _ in graphs]
        self._slots, self._memory = slots, memory
        self._infos = [[t for t in graph.inputs if c.LENGTH in t.shape] for graph in graphs]

    @property
    def rows(self) -> int:
        """The longest cache's length."""
        return max(self.lengths, default=0)

    def make_room(self, rows: int, cache: int = 0) -> bool:
        """Have room in one cache for `rows` rows and the one of padding that fused attention writes behind them.

        Returns whether its tensors were replaced, so that bindings to them are stale.
        """
        rows, have = rows + 1, self.lengths[cache]
        if rows <= have:
            return False
        self._resize(cache, max(rows, have + max(have // 8, GROWTH)))
        if rows > self.lengths[cache]:
            raise ValueError(f"{rows} rows do not fit a cache of {self.lengths[cache]}")
        return True

    def shrink(self, rows: int) -> bool:
        """Give back what no sequence of `rows` tokens is long enough for (0: all of it), where caches grow.

        Returns whether the tensors were replaced.
        """
        if self._memory.length or (rows and self.rows <= 2 * (rows + GROWTH)):
            return False
        self.resize(rows)
        return True

    def resize(self, rows: int) -> None:
        """Make all tensors `rows` long, rounded up to the bucket, keeping what fits. 0 frees them."""
        for cache in range(len(self.tensors)):
            self._resize(cache, rows)

    def _resize(self, cache: int, rows: int) -> None:
        rows = self._memory.length or -(-rows // c.CACHE_BUCKET) * c.CACHE_BUCKET
        if self.tensors[cache] and rows == self.lengths[cache]:
            return
        kept, old, new = min(rows, self.lengths[cache]), self.tensors[cache], {}
        for info in self._infos[cache]:
            shape = shape_of(info.shape, {"B": self._slots, c.LENGTH: rows})
            tensor = self._memory.cache(shape, info.dtype)
            if kept:
                tensor[:, :, :kept] = old[info.name][:, :, :kept]
            new[info.name] = new[c.updated(info.name)] = tensor
        self.tensors[cache], self.lengths[cache] = new, rows

    def of_slots(self, cache: int, first: int, last: int) -> dict[str, Cache]:
        """The tensors of one cache for the slots from `first` to before `last`: contiguous views."""
        return {name: tensor[first:last] for name, tensor in self.tensors[cache].items()}

    def clear(self, slot: int, rows: int) -> None:
        """Make a slot's first rows zeros again: what is not finite cannot be masked."""
        for tensor in self._each():
            self._memory.clear(tensor, slot, rows)

    def move(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of a slot over those of another."""
        for tensor in self._each():
            self._memory.move(tensor, source, target, rows)

    def _each(self) -> list[Cache]:
        pairs = zip(self._infos, self.tensors, strict=True)
        return [tensors[info.name] for infos, tensors in pairs for info in infos if tensors]
