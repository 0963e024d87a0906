"""A bundle whose engine passes note how long they took; the bundle itself, and what runs it, stay as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import NamedTuple

from eecompile.engines.interface import Array, Buffers, Engine, Memory, Pass
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import head_graph
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.schema import GraphInfo


class PassRecord(NamedTuple):
    """One pass: the graph's name as in a profile ("segment_0"), its rows with padding, seconds inside the engine."""

    graph: str
    rows: int
    seconds: float


@dataclass
class PassLog:
    """The passes of one run, in order. A record costs well under a microsecond."""

    passes: list[PassRecord] = field(default_factory=list)

    def take(self) -> list[PassRecord]:
        """The passes since the last call, and forget them."""
        taken, self.passes = self.passes, []
        return taken


class TimedPass:
    """A bound pass that notes its time."""

    __slots__ = ("_graph", "_inner", "_log", "_rows")

    def __init__(self, inner: Pass, graph: str, rows: int, log: PassLog) -> None:
        self._inner, self._graph, self._rows, self._log = inner, graph, rows, log

    def __call__(self) -> None:
        began = perf_counter()
        self._inner()
        self._log.passes.append(PassRecord(self._graph, self._rows, perf_counter() - began))


class TimedEngine:
    """A loaded graph whose passes note their times. It shares the engine's memory."""

    def __init__(self, engine: Engine, graph: str, log: PassLog) -> None:
        self.info: GraphInfo = engine.info
        self.memory: Memory = engine.memory
        self._engine, self._graph, self._log = engine, graph, log

    def bind(self, buffers: Buffers) -> Pass:
        """As Engine.bind."""
        return TimedPass(self._engine.bind(buffers), self._graph, _rows(self.info, buffers), self._log)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As Engine.run; not timed."""
        return self._engine.run(inputs)


def timed_bundle(bundle: Bundle, log: PassLog) -> Bundle:
    """`bundle` with every pass of its sessions noted in `log`. One log belongs to one thread at a time."""
    graphs = bundle.graphs

    def timed(engine: Engine, name: str) -> Engine:
        return TimedEngine(engine, name, log)

    loaded = LoadedGraphs(
        timed(graphs.embed, "embed"),
        [timed(engine, f"segment_{i}") for i, engine in enumerate(graphs.segments)],
        [timed(engine, f"exit_{i}") for i, engine in enumerate(graphs.exits)],
        timed(graphs.head, "head"),
        {name: timed(engine, head_graph(name)) for name, engine in graphs.heads.items()},
        [None if engine is None else timed(engine, f"kv_{i}") for i, engine in enumerate(graphs.kv)],
        graphs.encoder,
        graphs.factors,
        graphs.cycles,
        unbranched="passes are timed one by one",
    )
    return replace(bundle, graphs=loaded)


def _rows(info: GraphInfo, buffers: Buffers) -> int:
    """Rows of a pass, of all slots: B x R of the first input [B, R] or [B, R, D], N of [N, D]."""
    first = info.inputs[0]
    shape = buffers[first.name].shape
    return int(shape[0] * shape[1] if first.shape[0] == "B" else shape[0])
