"""A model that reads its lines from trace letters, under the real session: the oracle of the cost simulation.

Each row carries its position in column 0 and, once it is normalised, in column 1 who finished it: 0 the last layer,
g + 1 exit g. The full model's token depends on the position alone, so that a rolled back text goes on as the letters
say. Every pass is counted by graph and rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.engines.interface import HOST, Memory
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.modules import LayerAsker
from eecompile.runtime.request import Limits, Settings, Stats
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.session import Session
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.schema import GraphInfo

HIDDEN, VOCAB, PROMPT, SMALL = 2, 50, 1, "few"
PATIENCE = 1.0
Buffers = Mapping[str, Any]


def manifest_of(
    segments: list[int], schedule: list[int], cap: int, *, patient: bool = False, small: bool = False,
    layered: bool = False,
) -> Manifest:  # fmt: skip
    """A manifest of segments of these many layers, run in the order of `schedule`, with an exit between any two.

    patient: the exits after the first go by patience too. small: every other exit has a small head. layered: every
    other exit has a layer of its own.
    """
    depths = np.cumsum([segments[s] for s in schedule]).tolist()
    exits = [
        {"layer": n, "adapter": "layer" if layered and i % 2 == 0 else "norm",
         "gates": ["learned", "max_prob", *["patience"] * (patient and i > 0)], "gate_units": 1,
         "head": SMALL if small and i % 2 == 0 else "full"}
        for i, n in enumerate(depths[:-1])
    ]  # fmt: skip
    heads = [{"name": SMALL, "kind": "low_rank", "rank": 1}] if small else []

    def graph(name: str, layers: int = 0) -> dict[str, Any]:
        return {"path": f"segments/{name}.onnx", "inputs": [], "outputs": [], "layers": layers}

    sizes = {"heads": 1, "kv_heads": 1, "head_dim": 1, "vocab": VOCAB, "context": 512, "layers": depths[-1]}
    fields = {
        "format": c.FORMAT, "version": 1, "eecompile": "0", "target": "cpu", "precision": "fp32", "tokenizer": False,
        "model": {"family": "llama", "hidden": HIDDEN, **sizes},
        "kv_rules": ["catch_up"] if layered else list(c.KV_RULES),
        "pending_cap": cap, "prefill_rows": 128, "minimum_rows": 1, "slack": 64, "slots": 1, "exits": exits,
        "heads": heads,
        "schedule": [
            {"segment": s, "cache": k, "exit": k if k < len(exits) else None} for k, s in enumerate(schedule)
        ],
        "caches": [segments[s] for s in schedule],
        "graphs": {
            "embed": graph("embed"), "head": graph("head"), "heads": [graph(f"head_{SMALL}") for _ in heads],
            "segments": [graph(f"segment_{i}", n) for i, n in enumerate(segments)],
            "exits": [graph(f"exit_{i}", int(e["adapter"] == "layer")) for i, e in enumerate(exits)],
            "kv": [] if layered else [graph(f"kv_{i}", n) for i, n in enumerate(segments)],
        },
        "provenance": {}, "files": {}, "digest": "0" * 64,
    }  # fmt: skip
    return Manifest.model_validate(fields)


@dataclass(frozen=True)
class Engine:
    """A graph that is a function of its buffers; counts its passes by rows."""

    name: str
    info: GraphInfo
    run: Callable[[Buffers], None]
    passes: Counter[tuple[str, int]]
    memory: Memory = HOST

    def bind(self, buffers: Buffers) -> Callable[[], None]:
        """A pass over these buffers."""
        source = buffers[c.TOKEN_IDS] if c.TOKEN_IDS in buffers else buffers[c.HIDDEN]
        rows = source.size if c.TOKEN_IDS in buffers else source.size // HIDDEN

        def call() -> None:
            self.passes[self.name, rows] += 1
            self.run(buffers)

        return call


@dataclass(frozen=True)
class Played:
    """A request that ran: its statistics, and its passes without the prompt's."""

    stats: Stats
    passes: dict[tuple[str, int], int]


def play(
    manifest: Manifest, letters: str, *, open_exits: set[int], mode: str, cap: int, kv: str = "catch_up"
) -> Played:
    """Generate as many tokens as `letters` are about in a real session over the scripted model."""
    passes: Counter[tuple[str, int]] = Counter()
    graphs = _graphs(manifest, letters, passes)
    bounds = {"learned": 0.5, "max_prob": 0.5, "patience": PATIENCE}
    rules = [
        ExitRule.of(i, info.layer, {gate: bounds[gate] for gate in info.gates}) if i in open_exits else None
        for i, info in enumerate(manifest.exits)
    ]
    askers = [
        LayerAsker(engine, manifest, i, {}) if engine.info.layers else
        ExitAsker(engine, manifest.exits, i, HIDDEN, 1, {})
        for i, engine in enumerate(graphs.exits)
    ]  # fmt: skip
    settings = Settings(mode, [] if mode == "full" else rules, Limits(cap=cap), manifest.exits, kv)
    session = Session(manifest, graphs, None, settings, askers)
    count = len(letters) // len(manifest.exits)
    generation = session.generate([0] * PROMPT, max_new_tokens=count + 1, stop=())
    next(generation)
    for watcher in session._stairs.watchers.values():  # what waits of the prompt is not what tokens cost
        watcher.catch_up()
    passes.clear()
    list(generation)
    return Played(generation.stats, dict(passes))


def _graphs(manifest: Manifest, letters: str, passes: Counter[tuple[str, int]]) -> LoadedGraphs:
    exits, infos = len(manifest.exits), manifest.graphs

    def letter(row: Any) -> str:
        """What the exit that finished this row says there; the prompt's last row is about the first token."""
        at = (int(row[0]) - PROMPT) * exits + int(row[1]) - 1
        return letters[at]

    def embed(b: Buffers) -> None:
        b[c.HIDDEN_OUT][...] = 0

    def segment(b: Buffers) -> None:
        b[c.HIDDEN_OUT][..., 0] = b[c.POSITIONS]
        b[c.HIDDEN_OUT][..., 1] = 0

    def ask(number: int) -> Callable[[Buffers], None]:
        def run(b: Buffers) -> None:
            b[c.EXIT_HIDDEN][:, 0] = b[c.HIDDEN][..., 0].reshape(-1)
            b[c.EXIT_HIDDEN][:, 1] = number + 1
            b[c.CONFIDENCE][:] = [0.1 if letter(row) == "." else 0.9 for row in b[c.EXIT_HIDDEN]]

        return run

    def head(b: Buffers) -> None:
        for i, row in enumerate(b[c.HIDDEN]):
            said = "" if row[1] == 0 else letter(row)
            b[c.TOKEN][i] = (int(row[0]) * 7 + (said == "x")) % VOCAB
            b[c.EXIT_FLAG][i] = said in ("a", "x")

    def engine(name: str, info: GraphInfo, run: Callable[[Buffers], None]) -> Any:
        return Engine(name, info, run, passes)

    return LoadedGraphs(
        engine("embed", infos.embed, embed),
        [engine(f"segment_{i}", info, segment) for i, info in enumerate(infos.segments)],
        [engine(f"exit_{i}", info, ask(i)) for i, info in enumerate(infos.exits)],
        engine("head", infos.head, head),
        {h.name: engine(f"head_{h.name}", info, head) for h, info in zip(manifest.heads, infos.heads, strict=True)},
        [engine(f"kv_{i}", info, lambda b: None) for i, info in enumerate(infos.kv) if info],
    )


def consistent(letters: str, exits: int) -> str:
    """Letters of patient exits: where an exit fires, the one before it gives the same token."""
    said = list(letters)
    for at in range(len(said)):
        if at % exits and said[at] in "ax" and (said[at] == "x") != (said[at - 1] == "x"):
            said[at] = "h"
    return "".join(said)
