"""The plugin library's other half: kernels and calls for CUDA graphs with conditional nodes, through its C interface.

Handles are integers: of a stream, a graph, a node, a condition. Nothing here knows what a graph computes
(engines/branches.py).
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from eecompile.errors import DeviceError, MissingBackend
from eecompile.plugins.library import MEND, PluginLibrary

_POINTER, _HANDLE, _INT = ctypes.c_void_p, ctypes.c_ulonglong, ctypes.c_int
_TO_POINTER, _TO_HANDLE = ctypes.POINTER(_POINTER), ctypes.POINTER(_HANDLE)
_ARGUMENTS: Final = {
    "available": (),
    "capture": (_POINTER, _POINTER, _POINTER),
    "create": (_POINTER, _TO_HANDLE),
    "ask": (_POINTER, _POINTER, ctypes.c_double, ctypes.c_double, _POINTER, _TO_HANDLE, _TO_POINTER),
    "decide": (_POINTER, _POINTER, _INT, _POINTER, _TO_HANDLE, _TO_POINTER),
    "branch": (_POINTER, _POINTER, _HANDLE, _TO_POINTER, _TO_POINTER),
}


class Outcome(IntEnum):
    """What became of an exit in a step: condition.h. NOT_REACHED is what the host leaves there; ASKED nobody sees."""

    NOT_REACHED = 0
    REFUSED = 1
    ASKED = 2
    DECLINED = 3
    FIRED = 4


class Conditions:
    """The functions of a plugin library that was compiled with CUDA 12.4 or later, on a driver as recent.

    Raises MissingBackend where the library cannot be opened, is older than these functions, or library or driver know
    no such nodes.
    """

    def __init__(self, library: PluginLibrary, dlopen: Callable[[str], Any] = ctypes.CDLL) -> None:
        path = str(library.path)
        try:
            loaded = dlopen(path)
            self._functions = {name: getattr(loaded, f"eecompile_condition_{name}") for name in _ARGUMENTS}
        except OSError as e:
            raise MissingBackend(f"the plugin library cannot be opened ({e})", where=path, mend=MEND) from e
        except AttributeError as e:
            raise MissingBackend("the plugin library is of an older eecompile", where=path, mend=MEND) from e
        for name, function in self._functions.items():
            function.argtypes, function.restype = _ARGUMENTS[name], _INT
        if status := self._functions["available"]():
            what = f"the plugin library or the driver knows no conditional nodes (CUDA error {status})"
            mend = "compile the library with CUDA 12.4 or later, on a driver for that; or decide by the pinned flag"
            raise MissingBackend(what, where=path, mend=mend)

    def capture(self, stream: int, graph: int, after: int | None) -> None:
        """Begin to capture a stream's work into a graph, behind node `after`. cudaStreamEndCapture ends it.

        This and the others raise DeviceError where CUDA refuses.
        """
        self._call("capture", stream, graph, after)

    def create(self, graph: int) -> int:
        """A condition for one node of a graph: 0 at each launch, until something sets it."""
        condition = _HANDLE()
        self._call("create", graph, ctypes.byref(condition))
        return condition.value

    def ask(
        self, stream: int, value: int, above: float, most: float, outcome: int, condition: int | None
    ) -> int | None:  # fmt: skip
        """Put into the stream what sets `outcome` [int32] by the float32 at address `value`: ASKED where it is above
        `above` and at most `most`, else REFUSED; and `condition` to whether it is ASKED. Returns the node, where this
        is captured."""
        return self._node("ask", condition, stream, value, above, most, outcome)

    def decide(self, stream: int, flag: int, gated: bool, outcome: int, condition: int | None) -> int | None:
        """Put into the stream what sets `outcome` by the bool at address `flag`: FIRED or DECLINED, but where a gate
        has REFUSED; and `condition` to whether it is not FIRED. gated: `ask` came before. Returns as `ask`."""
        return self._node("decide", condition, stream, flag, int(gated), outcome)

    def branch(self, graph: int, after: int, condition: int) -> tuple[int, int]:
        """A node of the graph behind `after`, and its body: an empty graph, which runs where the condition is not 0."""
        node, body = _POINTER(), _POINTER()
        self._call("branch", graph, after, condition, ctypes.byref(node), ctypes.byref(body))
        assert node.value is not None
        assert body.value is not None
        return node.value, body.value

    def _node(self, name: str, condition: int | None, *arguments: Any) -> int | None:
        node = _POINTER()
        handle = None if condition is None else ctypes.byref(_HANDLE(condition))
        self._call(name, *arguments, handle, ctypes.byref(node))
        return node.value

    def _call(self, name: str, *arguments: Any) -> None:
        if status := self._functions[name](*arguments):
            raise DeviceError(f"CUDA: eecompile_condition_{name} failed with error {status}", where="the GPU")
