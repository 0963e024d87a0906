"""An open GGUF file: metadata with its types checked, and tensors by name. Every refusal names the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from eecompile.errors import UsageError

T = TypeVar("T")

REFETCH = "fetch the file again and compare its size and sha256"
RECONVERT = "convert the model to GGUF again"
OTHER_MODEL = "use a plain llama model"
NO_TOKENIZER = "import it without its tokenizer (--no-tokenizer), and run on ids or add the model's own tokenizer.json"


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, but a read past the end of the file fails; its own returns less, or loops for ever."""

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, *rest: Any, **named: Any) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"{count} values at {offset} lie past the end")
        return super()._get(offset, dtype, count, *rest, **named)


@dataclass(frozen=True)
class GGUFSource:
    """An open GGUF file: its metadata, and its memory-mapped tensors by name."""

    path: Path
    reader: Any
    tensors: dict[str, Any]

    def refuse(self, what: str, mend: str, cause: Exception | None = None) -> NoReturn:
        raise UsageError(what, where=str(self.path), mend=mend) from cause

    def get(self, key: str, kind: type[T]) -> T | None:
        """The metadata value of `key`, None where it is absent; floats are rounded to float32's shortest form."""
        field = self.reader.get_field(key)
        if field is None:
            return None
        try:
            value = field.contents()
        except ValueError as e:
            self.refuse(f"metadata {key} is not valid text", REFETCH, e)
        if kind is float and type(value) in (int, float):
            value = float(str(np.float32(value)))
        if type(value) is not kind:
            self.refuse(f"metadata {key} is of type {type(value).__name__}, not {kind.__name__}", RECONVERT)
        return value

    def need(self, key: str, kind: type[T], default: T | None = None) -> T:
        """As `get`, but refuses an absent value without a default and a number that is not positive and finite."""
        value = self.get(key, kind)
        value = default if value is None else value
        if value is None:
            self.refuse(f"metadata {key} is missing", RECONVERT)
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            self.refuse(f"metadata {key} is {value}, expected a positive number", RECONVERT)
        return value

    def strings(self, key: str) -> list[str]:
        """The distinct strings of the array `key`."""
        values = self.need(key, list)
        if not all(isinstance(value, str) for value in values) or len(set(values)) != len(values):
            self.refuse(f"metadata {key} is not a list of distinct strings", RECONVERT)
        return values


def open_gguf(path: Path) -> GGUFSource:
    """Parse the GGUF header; refuse what is no GGUF, is cut short, or is of another architecture."""
    where = str(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror}", where=where, mend="name a readable file") from e
    if magic != b"GGUF":
        raise UsageError("this is not a GGUF file", where=where, mend="name a file that starts with GGUF")
    try:
        reader = _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as e:
        raise UsageError("the GGUF file is cut short or damaged", where=where, mend=REFETCH) from e
    source = GGUFSource(path, reader, {tensor.name: tensor for tensor in reader.tensors})
    if reader.byte_order != "I":
        source.refuse("the file is in foreign byte order", RECONVERT)
    architecture = source.get("general.architecture", str)
    if architecture != "llama":
        source.refuse(f"the architecture is {architecture}; only llama can be imported", OTHER_MODEL)
    return source
