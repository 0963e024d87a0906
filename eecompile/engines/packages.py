"""The vendor's Python packages, which are imported when they are asked for."""

import importlib
from typing import Any

from eecompile.errors import MissingBackend

_MENDS = {
    "tensorrt": "JetPack brings it (python3-libnvinfer); elsewhere: pip install 'eecompile[tensorrt]'",
    "tensorrt_rtx": "pip install 'eecompile[rtx]'",
}


def load_module(name: str) -> Any:
    """The package `name`; raises MissingBackend where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except Exception as e:  # a placeholder package, or one without its libraries, fails in its own way
        raise MissingBackend(
            f"this needs the Python package {name}: {name} cannot be imported ({e})", mend=_MENDS[name]
        ) from e
