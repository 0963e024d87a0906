"""A double of the plugin library's C interface for graphs with branches, on the double of CUDA.

Its kernels run late, as all work does there, and do what condition.h says. `status`: what it says of itself.
"""

import ctypes
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_double import FakeCuda
from graphs_double import OK

from eecompile.plugins.conditions import Conditions, Outcome
from eecompile.plugins.library import PluginLibrary
from eecompile.runtime import backends


def install_library(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    """Put it in the place of the library that `make plugin` builds."""
    monkeypatch.setattr(backends, "find_library", lambda given: PluginLibrary(Path("double.so"), "0" * 64))
    monkeypatch.setattr(backends, "Conditions", lambda library: Conditions(library, lambda path: library_of(cuda)))


def library_of(cuda: FakeCuda, status: int = OK) -> SimpleNamespace:
    """What opening the library gives."""

    def available() -> int:
        return status

    def capture(stream: int, graph: int, after: int | None) -> int:
        cuda.begin_into(stream, graph, after)
        return OK

    def create(graph: int, condition: Any) -> int:
        condition._obj.value = cuda.new_condition(graph)
        return OK

    def ask(stream: int, value: int, above: float, most: float, outcome: int, condition: Any, node: Any) -> int:
        _inside(cuda, value, outcome)

        def work() -> None:
            found = ctypes.c_float.from_address(value).value
            agrees = not math.isnan(found) and above < found <= most
            _write(outcome, Outcome.ASKED if agrees else Outcome.REFUSED)
            _set(cuda, handle, agrees)

        handle = None if condition is None else condition._obj.value
        return _kernel(cuda, stream, work, node)

    def decide(stream: int, flag: int, gated: int, outcome: int, condition: Any, node: Any) -> int:
        cuda.inside(flag, 1, "host", "device")
        _inside(cuda, outcome)

        def work() -> None:
            before = ctypes.c_int32.from_address(outcome).value if gated else Outcome.ASKED
            fires = ctypes.c_uint8.from_address(flag).value != 0
            after = before if before != Outcome.ASKED else Outcome.FIRED if fires else Outcome.DECLINED
            _write(outcome, after)
            _set(cuda, handle, after != Outcome.FIRED)

        handle = None if condition is None else condition._obj.value
        return _kernel(cuda, stream, work, node)

    def branch(graph: int, after: int, condition: int, node: Any, body: Any) -> int:
        node._obj.value, body._obj.value = cuda.add_branch(graph, after, condition)
        return OK

    functions = (available, capture, create, ask, decide, branch)
    return SimpleNamespace(**{f"eecompile_condition_{function.__name__}": function for function in functions})


def _inside(cuda: FakeCuda, *addresses: int) -> None:
    for address in addresses:
        cuda.inside(address, 4, "host", "device")


def _kernel(cuda: FakeCuda, stream: int, work: Any, node: Any) -> int:
    cuda._work(stream, work)
    node._obj.value = cuda.node_of(stream)
    return OK


def _set(cuda: FakeCuda, condition: int | None, value: bool) -> None:
    if condition is not None:
        cuda.set_condition(condition, value)


def _write(address: int, outcome: int) -> None:
    ctypes.c_int32.from_address(address).value = int(outcome)
