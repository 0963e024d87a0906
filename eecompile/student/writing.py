"""Writing a checkpoint directory: complete or absent at all times, its weights streamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from eecompile.errors import UsageError

BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@contextlib.contextmanager
def new_checkpoint(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill, which is then renamed to it. Raises UsageError where `out` holds something."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output already exists", where=str(out), mend="remove it or name another")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], data: Iterable[bytes]) -> None:
    """Write the header (8-byte little-endian length, JSON), then `data`: the tensors' bytes in their order.

    tensors: (dtype, shape) by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + BYTES[dtype] * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for piece in data:
            stream.write(piece)
