"""The plugin library's C interface for graphs with branches, called as Python calls it, on a double of CUDA."""

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toolchain import SOURCES, compiler, cuda_headers

from eecompile.errors import DeviceError, MissingBackend
from eecompile.plugins.conditions import Conditions, Outcome
from eecompile.plugins.library import PluginLibrary
from eecompile.runtime.rules import in_range

HERE = Path(__file__).parent
STRICT = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
STREAM, GRAPH, NODE = 0x70, 0x80, 0x90


class Recorded(ctypes.Structure):
    """As in doubles/cudart.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("driver", "fails", "nodes")),
        *((name, ctypes.c_void_p) for name in ("stream", "graph", "after")),
        ("dependencies", ctypes.c_uint64),
        *((name, ctypes.c_int) for name in ("mode", "type", "size", "flags", "value")),
        ("handle", ctypes.c_ulonglong),
        ("set", ctypes.c_ulonglong),
        ("to", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> PluginLibrary:
    """conditions.cpp beside the double."""
    path = tmp_path_factory.mktemp("conditions") / "libeecompile_plugins.so"
    sources = [SOURCES / "conditions.cpp", HERE / "doubles" / "cudart.cpp"]
    command = [compiler("g++"), *STRICT, "-isystem", cuda_headers(), f"-I{SOURCES}", "-shared", *sources, "-o", path]
    subprocess.run(command, check=True)
    return PluginLibrary(path, "0" * 64)


@pytest.fixture
def told(library: PluginLibrary) -> Any:
    """What the double was told; and tells, as it stands at first."""
    function = ctypes.CDLL(str(library.path)).eecompile_recorded
    function.restype = ctypes.POINTER(Recorded)
    found = function().contents
    found.driver, found.fails, found.nodes, found.set, found.to = 12040, 0, 1, 0, -1
    return found


@pytest.fixture
def conditions(library: PluginLibrary, told: Any) -> Conditions:
    return Conditions(library)


VALUES = st.floats(width=32) | st.sampled_from([0.4, 0.5, 1.0])


@given(value=VALUES, above=st.floats(0, 1) | st.sampled_from([0.4, float(np.float32(0.4))]))
def test_a_gate_asks_as_the_host_does(conditions_once: Conditions, value: float, above: float) -> None:
    given_, outcome = np.array([value], np.float32), np.full(1, 9, np.int32)
    conditions_once.ask(STREAM, given_.ctypes.data, above, 1.0, outcome.ctypes.data, None)
    assert outcome[0] == (Outcome.ASKED if in_range("learned", float(given_[0]), above) else Outcome.REFUSED)


@pytest.fixture(scope="module")
def conditions_once(library: PluginLibrary) -> Conditions:
    return Conditions(library)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("before", [Outcome.NOT_REACHED, Outcome.REFUSED, Outcome.ASKED])
def test_a_head_decides_where_its_gate_has_agreed(
    conditions: Conditions, told: Any, gated: bool, flag: bool, before: Outcome
) -> None:
    given_, outcome = np.array([flag]), np.array([before], np.int32)
    node = conditions.decide(STREAM, given_.ctypes.data, gated, outcome.ctypes.data, 55)
    after = Outcome.FIRED if flag else Outcome.DECLINED
    expected = before if gated and before != Outcome.ASKED else after
    assert outcome[0] == expected
    assert (told.stream, told.set, told.to) == (STREAM, 55, expected != Outcome.FIRED)
    assert node


def test_a_gate_sets_whether_the_head_runs(conditions: Conditions, told: Any) -> None:
    outcome = np.zeros(1, np.int32)
    for value, runs in ((0.6, 1), (0.5, 0), (np.nan, 0), (np.inf, 0)):
        given_ = np.array([value], np.float32)
        assert conditions.ask(STREAM, given_.ctypes.data, 0.5, 1.0, outcome.ctypes.data, 56)
        assert (told.set, told.to) == (56, runs)


def test_sections_and_branches_are_what_cuda_is_asked_for(conditions: Conditions, told: Any) -> None:
    conditions.capture(STREAM, GRAPH, None)
    assert (told.stream, told.graph, told.after, told.dependencies, told.mode) == (STREAM, GRAPH, None, 0, 1)
    conditions.capture(STREAM, GRAPH, NODE)
    assert (told.after, told.dependencies) == (NODE, 1)
    assert conditions.create(GRAPH + 1) == 77
    assert (told.graph, told.value, told.flags) == (GRAPH + 1, 0, 1)
    node, body = conditions.branch(GRAPH, NODE, 77)
    assert (told.graph, told.after, told.dependencies, told.handle) == (GRAPH, NODE, 1, 77)
    assert (told.type, told.size) == (0, 1)  # an IF node with one body
    assert node != body


def test_a_node_is_the_one_that_was_captured(conditions: Conditions, told: Any) -> None:
    value, outcome = np.zeros(1, np.float32), np.zeros(1, np.int32)

    def ask() -> int | None:
        return conditions.ask(STREAM, value.ctypes.data, 0.5, 1.0, outcome.ctypes.data, None)

    assert ask()
    told.nodes = -1
    assert ask() is None
    told.nodes = 2  # work of another stream has joined
    with pytest.raises(DeviceError, match="eecompile_condition_ask failed"):
        ask()


def test_refusals_are_said(library: PluginLibrary, conditions: Conditions, told: Any) -> None:
    told.fails = 1
    for call in (
        lambda: conditions.capture(STREAM, GRAPH, None),
        lambda: conditions.create(GRAPH),
        lambda: conditions.branch(GRAPH, NODE, 77),
    ):
        with pytest.raises(DeviceError, match="failed with error 1"):
            call()
    told.fails, told.driver = 0, 12020
    with pytest.raises(MissingBackend, match="CUDA error 35"):
        Conditions(library)


def test_outcomes_are_the_headers() -> None:
    text = (SOURCES / "condition.h").read_text()
    for outcome in Outcome:
        name = "k" + outcome.name.title().replace("_", "")
        assert f"{name} = {int(outcome)}," in text
