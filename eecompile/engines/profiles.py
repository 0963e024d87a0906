"""Making a build plan: optimisation profiles from the graphs' symbols and the sizes of a build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eecompile import contract as c
from eecompile.engines.plan import ProfileName, ProfileShapes, ShapeRange
from eecompile.schema import TensorInfo

Range = tuple[int, int, int]  # least, tuned for, most


@dataclass(frozen=True)
class PassSizes:
    """What passes of a bundle may be: its slots, pending cap, minimum of rows, rows of a prefill pass, length of its
    caches."""

    slots: int
    pending_cap: int
    minimum_rows: int
    prefill_rows: int
    length: int


def profile_shapes(inputs: Sequence[TensorInfo], sizes: PassSizes) -> list[ProfileShapes]:
    """The profiles of a graph with these inputs: decoding, and prefill.

    Symbols (contract.py): a decode pass has 1 to pending_cap + 1 rows R of each of its slots B, a prefill pass up to
    prefill_rows; N are the rows of a pass flattened, which in a graph that has them both ways are B R. Segments and
    heads are tuned for the minimum of rows, to which they are padded; exits are asked for a row alone all the same.
    """
    names: tuple[ProfileName, ...] = ("decode", "prefill")
    profiles = []
    for name in names:
        symbols = _symbols(name, sizes)
        if any("R" in t.shape for t in inputs):
            least, best, most = (b * r for b, r in zip(symbols["B"], symbols["R"], strict=True))
            symbols |= {"N": (least, best, most)}
        profiles.append(ProfileShapes(name=name, shapes={t.name: _shape(t, symbols) for t in inputs}))
    return profiles


def _symbols(name: ProfileName, sizes: PassSizes) -> dict[str, Range]:
    """The range of each symbol in a profile, the value to tune for in the middle."""
    least = sizes.minimum_rows
    if name == "decode":
        rows = (1, least, max(least, sizes.pending_cap + 1))
        flat = (1, max(least, sizes.slots), max(least, sizes.slots * (sizes.pending_cap + 1)))
    else:
        most = max(sizes.prefill_rows, sizes.pending_cap + 1, least)
        rows = flat = (1, most, most)
    slots = (1, sizes.slots, sizes.slots)
    return {"B": slots, "R": rows, "N": flat, c.LENGTH: (sizes.length,) * 3}


def _shape(tensor: TensorInfo, symbols: Mapping[str, Range]) -> ShapeRange:
    """A tensor's shapes; KeyError where a symbol is not a decoder's."""
    ranges = [(d,) * 3 if isinstance(d, int) else symbols[d] for d in tensor.shape]
    low, best, high = ([r[i] for r in ranges] for i in range(3))
    return ShapeRange(min=low, opt=best, max=high)
