"""What each graph of a bundle takes when the prompt that was recorded at build runs through it.

Two passes: all tokens but the last at once, as a prompt is read, and then the last one, as a token is decoded, on the
caches that the first pass left. Every input is one that the runtime could give: token ids of the vocabulary,
consecutive positions, write indices behind what is written.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.factors import read_factors, uncut_factors
from eecompile.bundle.gates import gate_inputs
from eecompile.bundle.read import BundleFiles
from eecompile.errors import UsageError
from eecompile.schema import GraphInfo
from eecompile.verify.chain import Arrays, Chain, GraphRun, cache_inputs, empty_caches, graph_name, numbered
from eecompile.verify.criteria import criteria_of
from eecompile.verify.references import read_recorded

UNCUT = "reference"
Pass = tuple[Arrays, Iterator[GraphRun]]


class Recording:
    """The recorded prompt of an intact bundle that generates text. Not thread-safe.

    `spans` are the rows (from, to) of its passes, `rows` what the float32 model made of them at build. Memory: the
    weights of the graphs that run. Raises UsageError where the bundle has no uncut graph, IntegrityError where what was
    recorded does not fit. length: rows of the caches, where they are to be longer than the prompt needs.
    """

    def __init__(self, files: BundleFiles, length: int | None = None) -> None:
        self._files, self._manifest = files, files.manifest
        self.chain = Chain(files)
        self._uncut = self.chain.uncut
        ids, source, self.rows = read_recorded(files.path, files.manifest)
        self._ids, self._source = np.array(ids, np.int64), source
        cut = max(1, len(ids) - 1)
        self.spans = list(pairwise(sorted({0, cut, len(ids)})))
        self._thresholds = _thresholds(len(ids), self.rows.logits)
        # and the one row of padding that fused attention writes behind the prompt
        self._length = length or -(-(len(ids) + 1) // c.CACHE_BUCKET) * c.CACHE_BUCKET

    @property
    def graphs(self) -> dict[str, GraphInfo]:
        """The bundle's graphs by name, in the order in which they run; the uncut one is `UNCUT`."""
        graphs = self._manifest.graphs
        encoder = [] if graphs.encoder is None else [graphs.encoder]
        chain = (graphs.embed, *encoder, *graphs.segments, *graphs.exits, graphs.head, *graphs.heads)
        return {UNCUT: self._uncut, **{graph_name(info): info for info in chain}}

    def feeds(self, name: str) -> Iterator[Arrays]:
        """What the graph `name` takes, by input, each time that it runs. Raises UsageError where there is none."""
        graphs = self._manifest.graphs
        heads = [graph_name(info) for info in (graphs.head, *graphs.heads)]
        exits = [graph_name(info) for info in graphs.exits]
        if name not in self.graphs:
            raise UsageError(f"the bundle has no graph {name}", mend=f"graphs: {', '.join(self.graphs)}")
        if name == UNCUT:
            return self._uncut_feeds()
        if name in heads:
            return self._head_feeds()
        if graphs.encoder is not None and name == graph_name(graphs.encoder):
            return iter([self._encoder_feed()])
        return self._exit_feeds(exits.index(name)) if name in exits else self._chain_feeds(name)

    def steps(self, name: str) -> list[int]:
        """The schedule's steps that run the segment `name`."""
        segments = [graph_name(info) for info in self._manifest.graphs.segments]
        return [k for k, step in enumerate(self._manifest.schedule) if segments[step.segment] == name]

    def _uncut_feeds(self) -> Iterator[Arrays]:
        for feed, runs in self._passes():
            yield feed
            for _ in runs:
                pass

    def _chain_feeds(self, name: str) -> Iterator[Arrays]:
        """Of the embedding or a segment: nothing that comes after its last run is computed."""
        last = max(self.steps(name), default=None)
        for _, runs in self._passes():
            for run in runs:
                if run.name == name:
                    yield run.inputs
                if run.step == last:
                    break

    def _exit_feeds(self, exit_: int) -> Iterator[Arrays]:
        """Of an exit: the rows at its boundary and those at the exit before, and no candidates yet."""
        info, size = self._manifest.graphs.exits[exit_], self._manifest.model.hidden
        weights = gate_inputs(self._files.policy.exits[exit_], self._manifest.exits[exit_], size)
        caches = empty_caches(info, self._length)
        for feed, runs in self._passes():
            rows, before = self._rows_at(exit_, runs)
            flat = rows if info.layers else rows.reshape(-1, size)
            some = (len(before), c.CANDIDATE_COUNT)
            nothing: dict[str, NDArray[Any]] = {
                c.CANDIDATES: np.full(some, -1, np.int64),
                c.LAST_LOCAL: np.zeros(some, np.float32),
            }
            given = {
                **feed,
                c.HIDDEN: flat,
                c.PREVIOUS: before,
                **nothing,
                **weights,
                **caches,
            }
            inputs = {t.name: given[t.name] for t in info.inputs}
            yield inputs
            if caches:
                outputs = self.chain.run_graph(info, inputs)
                caches = {name: outputs[c.updated(name)] for name in caches}

    def _rows_at(self, exit_: int, runs: Iterator[GraphRun]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rows at an exit [1, R, D], and at the exit before it [R, D]: zeros where there is none."""
        before = None
        for run in runs:
            asked = None if run.step is None else self._manifest.schedule[run.step].exit
            rows: NDArray[np.float32] = run.outputs[c.HIDDEN_OUT]
            if asked == exit_:
                return rows, np.zeros_like(rows[0]) if before is None else before[0]
            before = rows if asked is not None else before
        raise AssertionError(f"the schedule does not ask exit {exit_}")

    def _head_feeds(self) -> Iterator[Arrays]:
        """Of a head: the rows whose logits were recorded."""
        count = len(self.rows.logits)
        yield {c.HIDDEN: self.rows.finished[-count:], c.THRESHOLDS: self._thresholds[-count:]}

    def _passes(self) -> Iterator[Pass]:
        """The uncut graph's inputs of each pass, and what runs in it; caches are as far as what ran left them."""
        fixed, caches = self._fixed(), empty_caches(self._uncut, self._length)
        for start, end in self.spans:
            feed: dict[str, NDArray[Any]] = {
                c.TOKEN_IDS: self._ids[None, start:end],
                c.POSITIONS: np.arange(start, end, dtype=np.int64)[None],
                c.WRITE_INDEX: np.array([start], np.int64),
                c.THRESHOLDS: self._thresholds[start:end],
                **fixed,
                **caches,
            }
            after = dict(caches)
            yield feed, self._noted(feed, after)
            caches = after

    def _noted(self, feed: Arrays, caches: dict[str, NDArray[Any]]) -> Iterator[GraphRun]:
        """The chain's runs; notes what becomes of the caches, by the uncut graph's names."""
        for run in self.chain.runs(feed):
            kept = [t.name for t in cache_inputs(self.graphs[run.name])]
            caches |= {numbered(name, run.first): run.outputs[c.updated(name)] for name in kept}
            yield run

    def _fixed(self) -> Arrays:
        """What is the same in every pass: LoRA, and what an encoder made of the source."""
        fixed: dict[str, NDArray[Any]] = dict(
            uncut_factors(self._manifest, read_factors(self._files.path, self._manifest))
        )
        encoder = self._manifest.graphs.encoder
        if encoder is not None:
            feed = self._encoder_feed()
            fixed |= {c.SOURCE_LENGTH: feed[c.SOURCE_LENGTH], **self.chain.run_graph(encoder, feed)}
        return fixed

    def _encoder_feed(self) -> Arrays:
        assert self._source is not None  # an encoder's bundle has recorded one
        padded = np.zeros((1, -(-len(self._source) // c.CACHE_BUCKET) * c.CACHE_BUCKET), np.int64)
        padded[0, : len(self._source)] = self._source
        return {c.TOKEN_IDS: padded, c.SOURCE_LENGTH: np.array([len(self._source)], np.int64)}


def _thresholds(count: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bounds [count, 3], each row's on one criterion, in turn: the middle of what the last rows' logits give."""
    bounds = np.tile(np.array(c.NO_BOUND, np.float32), (count, 1))
    values = criteria_of(logits)
    for column, name in enumerate(c.HEAD_CRITERIA):
        bounds[column :: len(c.HEAD_CRITERIA), column] = np.median(values[name])
    return bounds
