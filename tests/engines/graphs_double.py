"""The part of the double of CUDA that streams and graphs are: what waits, what is captured, what branches run.

A graph's nodes stand one behind the other, as one stream's work does: what would run beside something raises
RuleBroken, and so does what CUDA forbids of graphs with branches.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], None]
OK, FAILED = 0, 1
LEGAL = ("kernel", "memcpy", "memset", "branch")  # in a branch's body


class RuleBroken(AssertionError):
    """CUDA's or TensorRT's rules were not kept."""


@dataclass
class Node:
    """What a graph does: work of a kind, or a branch: a body that runs where the condition is not 0."""

    number: int
    kind: str
    work: Work = lambda: None
    condition: int = 0
    body: int = 0


@dataclass
class Graph:
    """Nodes, each behind the one before it. root: the graph that this is a body in, or itself."""

    root: int
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Executable:
    """What was made of a graph: that graph, and all the bodies in it."""

    graph: int
    parts: dict[int, Graph]


@dataclass
class Stream:
    """Work that waits, and the graph that is being captured, by which thread."""

    queue: list[Work] = field(default_factory=list)
    graph: "Graph | None" = None
    captured: int = 0
    thread: int = 0


class FakeGraphs:
    """Streams and graphs by handle. conditions: by handle the graph of each, and its value. launched: the graph whose
    executable is at work."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, Graph] = {}
        self.executables: dict[int, Executable] = {}
        self.conditions: dict[int, tuple[int, int]] = {}
        self.launched = 0
        self._next = 7

    def stream(self, handle: int) -> Stream:
        """The stream of that handle, which is not the default one."""
        if int(handle) not in self.streams:
            raise RuleBroken(f"{handle} is no stream that was made: the default stream, or one that is gone")
        return self.streams[int(handle)]

    def not_capturing(self, what: str) -> None:
        """That this thread is in no capture."""
        here = threading.get_ident()
        if any(s.graph is not None and s.thread == here for s in self.streams.values()):
            raise RuleBroken(f"{what} during a capture")

    def cudaGraphCreate(self, flags: int) -> Any:
        return OK, self._new_graph()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self._begin(stream, self._new_graph())
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        found = self.stream(stream)
        if found.graph is None or found.thread != threading.get_ident():
            raise RuleBroken("the end of a capture that this thread did not begin")
        found.graph = None
        return OK, found.captured

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        parts = {part: self.graphs[part] for part in self._within(graph)}
        if len(parts) > 1 and self._is_made(graph):
            raise RuleBroken("a graph with branches has one executable at a time")
        if any(node.kind not in LEGAL for body in [*parts.values()][1:] for node in body.nodes):
            return FAILED, None
        branches = [node.condition for part in parts.values() for node in part.nodes if node.kind == "branch"]
        if sorted(branches) != sorted(c for c, (at, _) in self.conditions.items() if at in parts):
            raise RuleBroken("a condition without its one branch, or a branch of another graph's condition")
        handle = self._handle()
        self.executables[handle] = Executable(graph, parts)
        return OK, handle

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        self.not_capturing("a graph is launched")
        made = self.executables[executable]
        return self._work(stream, lambda: self._launch(made))

    def cudaGraphDestroy(self, graph: int) -> Any:
        found = self.graphs[graph]
        if found.root != graph:
            raise RuleBroken("a body is destroyed, which is its graph's own")
        parts = list(self._within(graph))
        if len(parts) > 1 and self._is_made(graph):
            raise RuleBroken("a graph goes before its executable, whose conditions it owns")
        self.conditions = {c: (at, value) for c, (at, value) in self.conditions.items() if at not in parts}
        for part in parts:
            del self.graphs[part]
        return (OK,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        del self.executables[executable]
        return (OK,)

    # -- for the double of the plugin library --
    def begin_into(self, stream: int, graph: int, after: int | None) -> None:
        """Capture into a graph, behind a node that has to be its last."""
        nodes = self.graphs[graph].nodes
        if (nodes[-1].number if nodes else None) != after:
            raise RuleBroken("captured work runs beside what the graph has, instead of behind it")
        self._begin(stream, graph)

    def new_condition(self, graph: int) -> int:
        """A condition for a branch of this graph, 0 when it is launched."""
        handle = self._handle()
        self.conditions[handle] = (graph, 0)
        return handle

    def set_condition(self, condition: int, value: bool) -> None:
        """As a kernel of a graph does."""
        if condition not in self.conditions or self.graphs[self.conditions[condition][0]].root != self.launched:
            raise RuleBroken("a condition is set from outside of its graph")
        self.conditions[condition] = (self.conditions[condition][0], int(value))

    def add_branch(self, graph: int, after: int, condition: int) -> tuple[int, int]:
        """A node behind the graph's last, which `after` has to be, and its body."""
        found = self.graphs[graph]
        if any(s.graph is not None for s in self.streams.values()):
            raise RuleBroken("a branch is added while something is captured")
        if not found.nodes or found.nodes[-1].number != after:
            raise RuleBroken("a branch beside what sets its condition, instead of behind it")
        body = self._new_graph(found.root)
        found.nodes.append(Node(self._handle(), "branch", condition=condition, body=body))
        return found.nodes[-1].number, body

    def node_of(self, stream: int) -> int | None:
        """The last node of the graph that is captured from the stream."""
        graph = self.stream(stream).graph
        return None if graph is None else graph.nodes[-1].number

    def _begin(self, stream: int, graph: int) -> None:
        found = self.stream(stream)
        if found.graph is not None:
            raise RuleBroken("a capture inside a capture")
        if found.queue:
            raise RuleBroken("a capture begins before the run before it was waited for")
        found.graph, found.captured, found.thread = self.graphs[graph], graph, threading.get_ident()

    def _is_made(self, graph: int) -> bool:
        return any(made.graph == graph for made in self.executables.values())

    def _launch(self, made: Executable) -> None:
        for condition, (at, _) in self.conditions.items():
            if at in made.parts:
                self.conditions[condition] = (at, 0)
        self.launched = made.graph
        self._run_graph(made.parts[made.graph], made.parts)
        self.launched = 0

    def _run_graph(self, graph: Graph, parts: dict[int, Graph]) -> None:
        for node in graph.nodes:
            if node.kind != "branch":
                node.work()
            elif self.conditions[node.condition][1]:
                self._run_graph(parts[node.body], parts)

    def _new_graph(self, root: int = 0) -> int:
        handle = self._handle()
        self.graphs[handle] = Graph(root or handle)
        return handle

    def _within(self, graph: int) -> Iterator[int]:
        yield graph
        for node in self.graphs[graph].nodes:
            if node.kind == "branch":
                yield from self._within(node.body)

    def _work(self, stream: int, work: Work, kind: str = "kernel") -> Any:
        found = self.stream(stream)
        if found.graph is not None:
            if found.thread != threading.get_ident():
                raise RuleBroken("another thread's work slips into a capture")
            found.graph.nodes.append(Node(self._handle(), kind, work))
        else:
            found.queue.append(work)
        return (OK,)

    def _handle(self) -> int:
        self._next += 1
        return self._next
