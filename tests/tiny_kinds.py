"""What tiny decoders are made of where both runtimes are compared: every kind of exit, head, schedule and K/V rule."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from eecompile.bundle.ranges import criterion_range
from eecompile.runtime import Bundle
from eecompile.runtime.trace import Tracer
from eecompile.shapes import Adaptive, Decay, HeadShape, PredictorShape, RouterShape
from eecompile.student.cycles import CycleSpec
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.loops import Loops

GAIN = 0.35  # layers that add little: exits agree with the last layer about half of the time
HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=np.random.default_rng(1).permutation(tiny.VOCAB)[:90].tolist()),
]
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.05}]


def exits_of(
    gates: Sequence[Any], adapters: Sequence[Any] = ("norm",) * 3, head: str = "full", *, routers: int = 1,
    schedule: Any = None,
) -> list[ExitSpec]:  # fmt: skip
    """The same gates after each of three layers, the first `routers` of them with a router of their own."""
    return [
        ExitSpec(
            layer=i + 1, adapter=adapter, gates=list(gates), gate_units=3 * ("learned" in gates), head=head,
            router=RouterShape(choices=4 - i, units=5 * i) if "router" in gates and i < routers else None,
            predictor=PredictorShape(head="few", units=8) if "predictor" in gates else None, schedule=schedule,
        )
        for i, adapter in enumerate(adapters)
    ]  # fmt: skip


LAYERS = ("layer", "mlp", "layer")
KINDS: Mapping[str, Mapping[str, Any]] = {  # what the bundles are made of, by name
    "patience": {"exits": exits_of(["patience"])},
    "patience-probability-thin": {"exits": exits_of(["max_prob", "patience"], head="thin")},
    "learned-patience": {"exits": exits_of(["learned", "patience"])},
    "saturation": {"exits": exits_of(["saturation"])},
    "saturation-margin": {"exits": exits_of(["saturation", "margin"])},
    "router": {"exits": exits_of(["router"])},
    "routers-few": {"exits": exits_of(["router"], head="few", routers=3)},
    "predictor": {"exits": exits_of(["predictor"])},
    "all-few": {"exits": exits_of(["saturation", "router", "predictor", "patience"], head="few", routers=2)},
    "decay": {"exits": exits_of(["max_prob"], schedule=Decay(kind="decay", tokens=16))},
    "adaptive": {"exits": exits_of(["margin"], schedule=Adaptive(kind="adaptive", low=0.02, high=0.4))},
    "adaptive-both": {"exits": exits_of(["max_prob", "entropy"], schedule=Adaptive(kind="adaptive", low=0.02))},
    "layers": {"exits": exits_of(["max_prob"], LAYERS)},
    "layers-padded": {"exits": exits_of(["learned", "max_prob"], LAYERS), "minimum_rows": 3},
    "layers-gates": {"exits": exits_of(["predictor", "router", "saturation"], ["layer"] * 3)},
    "layers-fused": {"exits": exits_of(["margin"], LAYERS), "settings": tiny.config(head_dim=16, attention_bias=True)},
    "loops": {
        "exits": exits_of(["max_prob"]), "settings": tiny.config(num_hidden_layers=3),
        "loops": Loops(prelude=1, block=1, loops=2, rank=2, projections=["q", "k", "down"]),
    },
}  # fmt: skip

RULES = {"kv": ("catch_up", "propagate", "selected")}
SELECTED = {"kv": ("catch_up", "selected")}
MODELS: Mapping[str, Mapping[str, Any]] = {  # bundles with other rules for skipped layers, by name
    "llama": {"build": RULES},
    "fused": {"build": RULES, "settings": tiny.config(head_dim=16, attention_bias=True)},
    "window": {"build": RULES, "settings": tiny.config("mistral", sliding_window=7)},
    "qwen3": {"build": RULES, "settings": tiny.config("qwen3", head_dim=16, num_key_value_heads=1)},
    "int8-caches": {"build": {**RULES, "cache": "int8"}},
    "half-caches": {"build": {**RULES, "cache": "fp16"}, "minimum_rows": 2},
    "loops": {
        "build": SELECTED, "settings": tiny.config(num_hidden_layers=3),
        "loops": Loops(prelude=1, block=1, loops=2, rank=2, projections=["q", "k", "down"]),
    },
    "loops-alone": {  # the last step has no layers
        "build": SELECTED, "settings": tiny.config(num_hidden_layers=2, head_dim=16),
        "loops": Loops(prelude=0, block=2, loops=2),
    },
}  # fmt: skip


def heads_of(exits: Sequence[ExitSpec]) -> list[HeadShape]:
    """The small heads that these exits ask for."""
    names = {name for e in exits for name in (e.head, e.predictor.head if e.predictor else "")}
    return [head for head in HEADS if head.name in names]


def cyclic_checkpoint(path: Path) -> Path:
    """A checkpoint with a gate that is undecided enough that some rows run again and some do not."""
    cycles = [CycleSpec(first=0, layer=2), CycleSpec(first=2, layer=4, repeats=3)]
    rng = np.random.default_rng(1)
    shapes = [pair for cycle in cycles for pair in cycle.shapes(32).items()]
    tensors = {n: (rng.standard_normal(s) * (0.2 if "weight" in n else 0.5)).astype(np.float32) for n, s in shapes}
    source = tiny.checkpoint(path, gain=GAIN)
    save_exits(source, EarlyExit(exits=[], cycles=cycles), tensors)
    return source


def thresholds_of(
    opened: Bundle, share: float, ids: Sequence[int] | None = None, source: Sequence[int] | None = None
) -> dict[int, dict[str, float]]:
    """Thresholds by layer at which each gate lets about this share of a document's tokens on; `source` is that of an
    encoder-decoder."""
    ids = np.random.default_rng(7).integers(0, tiny.VOCAB, 100).tolist() if ids is None else ids
    trace = Tracer(opened).trace(ids, source)
    found: dict[int, dict[str, float]] = {}
    for info, said_there in zip(opened.manifest.exits, trace.exits, strict=True):
        found[info.layer] = {}
        for gate in info.gates:
            values = said_there.value(gate) if gate != "patience" else np.array([1.0])
            values = values[np.isfinite(values)]
            low, high = criterion_range(gate, opened.manifest.model.vocab)
            at = np.quantile(values, share if gate == "entropy" else 1 - share) if len(values) else low
            found[info.layer][gate] = float(np.clip(at, low, high))
    return found
