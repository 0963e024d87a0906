"""The TensorRT plugin library: where it is, what it is, and how a process gets it registered.

It is compiled on the machine that builds or runs engines, for the TensorRT that is there (`make plugin`, or
exit_decision/CMakeLists.txt). TensorRT-RTX has no plugins: nothing is to be registered
there. The library's other half, for CUDA graphs with branches, is conditions.py's, and needs no TensorRT.
"""

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.errors import MissingBackend

LIBRARY = "libeecompile_plugins.so"
MEND = "compile it on this machine: `make plugin TENSORRT=folder`, or cmake on eecompile/plugins/exit_decision"
_BUILT = Path(__file__).parents[2] / "build" / "plugin"  # of a checkout


@dataclass(frozen=True)
class PluginLibrary:
    """A plugin library. sha256: of the file, hex, as records of engines keep it."""

    path: Path
    sha256: str


def find_library(given: Path | None = None) -> PluginLibrary | None:
    """The library at `given` (a file, or the folder that has it), else the one that `make plugin` has built in this
    checkout; None where nothing is given and none is built.

    Raises MissingBackend where `given` is no such file.
    """
    folder = _BUILT if given is None else given
    path = folder / LIBRARY if given is None or folder.is_dir() else folder
    if given is None and not path.exists():
        return None
    try:
        return PluginLibrary(path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as e:
        raise MissingBackend(f"there is no plugin library ({e.strerror})", where=str(path), mend=MEND) from e


def load_library(trt: Any, library: PluginLibrary, dlopen: Callable[[str], Any] = ctypes.CDLL) -> None:
    """Register the plugins of `library` with `trt`, the tensorrt module, for the rest of this process. Idempotent.

    Opening the library registers it where it finds the TensorRT that it was compiled for; only where it did not is the
    registry asked to load it, since that refuses, and may unload, what is registered already.

    Raises MissingBackend where the library cannot be opened or TensorRT does not take it.
    """
    registry, path = trt.get_plugin_registry(), str(library.path)
    if is_registered(registry):
        return
    try:
        dlopen(path)
    except OSError as e:
        raise MissingBackend(f"the plugin library cannot be opened ({e})", where=path, mend=MEND) from e
    if not is_registered(registry):
        registry.load_library(path)
    if not is_registered(registry):
        what = f"TensorRT {trt.__version__} does not take the plugin library: it was compiled for another version"
        raise MissingBackend(what, where=path, mend=MEND)


def is_registered(registry: Any) -> bool:
    """Whether a plugin registry knows the exit decision of graphs (`plugin_namespace` "")."""
    return registry.get_creator(c.DECISION_OP, c.DECISION_VERSION, "") is not None
