"""What a pass of some rows through layers or a head takes on a target: measured on it, or by bytes read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from eecompile import contract as c
from eecompile.bench.cost import PassCosts
from eecompile.bundle.manifest import ExitInfo, Graphs, Manifest, Step
from eecompile.bundle.read import read_bundle
from eecompile.errors import UsageError
from eecompile.schema import GraphInfo
from eecompile.target import Target
from eecompile_training.analyze.subject import Subject

LENGTH: Final = 256  # tokens in the cache of the step that is priced
BYTES: Final[Mapping[str, float]] = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}
ROWS: Final = (1, 2, 3, 5, 9)
EXIT_HEAD: Final = "small"
Curve = Callable[[int], float]


@dataclass(frozen=True)
class Prices:
    """Seconds of a pass by its rows (or bytes, where the target's rate is not known: then only ratios mean something):
    of a layer, of the model's head, and of `weights(n, rows)`, a matrix of n weights. `basis` says where they are from.
    """

    layer: Curve
    head: Curve
    weights: Callable[[int, int], float]
    basis: str


def prices_by_bytes(subject: Subject, target: Target) -> Prices:
    """A pass takes the longer of reading its weights once, with every row's keys and values, and of multiplying them.

    Without a rate for the multiplications more rows cost only what they read, which flatters catch-up passes on a
    processor that computes slowly.
    """
    size, flops = BYTES[target.precision], target.flops.get(target.precision, 0.0)
    stored, active = layer_weights(subject)
    cache = 4.0 * key_values(subject)

    def seconds(read: float, weights: float, rows: int) -> float:
        return max(read / (target.bandwidth or 1.0), 2 * weights * rows / flops if flops else 0.0)

    def layer(rows: int) -> float:
        return seconds(size * stored(rows) + cache * (LENGTH + rows), active, rows)

    def weights(count: int, rows: int) -> float:
        return seconds(size * count, count, rows)

    table = subject.vocab * subject.hidden_size
    basis = f"bytes that a pass reads in {target.precision}" + (
        "" if flops else "; arithmetic of more rows not counted"
    )
    return Prices(layer, lambda rows: weights(table, rows), weights, basis)


def prices_of_profile(subject: Subject, bundle: Path) -> Prices:
    """What was measured of a bundle of a model of this shape: a layer is its segments' mean, any other matrix has its
    share of the head's time. Raises UsageError where there is no profile or the shapes differ."""
    files = read_bundle(bundle, integrity="size")
    model, mend = files.manifest.model, "profile a bundle of this model: `eecompile profile BUNDLE`"
    if not files.profiles:
        raise UsageError("the bundle has no profile", where=str(bundle), mend=mend)
    if (model.layers, model.hidden, model.vocab) != (subject.depth, subject.hidden_size, subject.vocab):
        raise UsageError("the bundle is of a model of another shape", where=str(bundle), mend=mend)
    costs = PassCosts.from_profile(files.profiles[0])
    segments = {f"segment_{i}": segment.layers for i, segment in enumerate(files.manifest.graphs.segments)}
    table = model.vocab * model.hidden

    def layer(rows: int) -> float:
        return sum(costs.seconds(name, rows, LENGTH) for name in segments) / sum(segments.values())

    def head(rows: int) -> float:
        return costs.seconds("head", rows, LENGTH)

    basis = f"measured on {files.profiles[0].device}, {files.manifest.precision}"
    return Prices(layer, head, lambda count, rows: head(rows) * count / table, basis)


def one_exit(depth: int, layer: int, adapter: int, head: int | None, prices: Prices) -> tuple[Manifest, PassCosts]:
    """What bench/cost.py's replay reads of a model with one exit after `layer` of `depth` layers: the parts of a
    manifest that say in which order passes run, and each pass's price. head: weights of the exit's own; None: the
    model's."""

    def graph(name: str, layers: int = 0) -> GraphInfo:
        return GraphInfo(path=name, inputs=[], outputs=[], layers=layers)

    name = c.FULL_HEAD if head is None else EXIT_HEAD
    segments = [graph("segment_0", layer), graph("segment_1", depth - layer)]
    exits = [ExitInfo(layer=layer, adapter="affine", gates=["max_prob"], head=name)]
    manifest = Manifest.model_construct(
        exits=exits,
        schedule=[Step(segment=0, cache=0, exit=0), Step(segment=1, cache=1)],
        graphs=Graphs.model_construct(segments=segments),
    )
    passes: dict[str, Curve] = {
        "embed": lambda rows: 0.0,
        "segment_0": lambda rows: layer * prices.layer(rows),
        "segment_1": lambda rows: (depth - layer) * prices.layer(rows),
        "exit_0": lambda rows: prices.weights(adapter, rows),
        "head": prices.head,
        f"head_{EXIT_HEAD}": lambda rows: prices.weights(head or 0, rows),
    }
    lengths = np.array([float(LENGTH)])
    return manifest, PassCosts({
        graph_name: {rows: (lengths, np.array([curve(rows)])) for rows in ROWS} for graph_name, curve in passes.items()
    })  # fmt: skip


def layer_weights(subject: Subject) -> tuple[Callable[[int], float], float]:
    """(weights that a pass of so many rows reads of a layer, weights that multiply each row): the mean over layers.

    Of experts a pass reads those that any of its rows chose, as many as random choices would come to.
    """
    experts, chosen = _expert_counts(subject.config)
    total = sum(p.numel() for layer in subject.layers for p in layer.parameters()) / subject.depth
    of_experts = sum(p.numel() for layer in subject.layers for p in _expert_parameters(layer)) / subject.depth
    rest = total - of_experts

    def read(rows: int) -> float:
        touched = 1 - float((1 - chosen / experts) ** rows)
        return float(rest + of_experts * touched)

    return read, rest + of_experts * chosen / experts


def key_values(subject: Subject) -> int:
    """Numbers that a layer keeps of a token; none of a model without attention, whose state does not grow."""
    config = subject.config
    heads = getattr(config, "num_attention_heads", 0) or 0
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or subject.hidden_size // heads
    return int(2 * (getattr(config, "num_key_value_heads", None) or heads) * size)


def _expert_counts(config: Any) -> tuple[int, int]:
    """(experts of a layer, how many a row takes); (1, 1) of a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(getattr(config, n)) for n in names if getattr(config, n, None)), 1)
    return experts, min(experts, int(getattr(config, "num_experts_per_tok", None) or experts))


def _expert_parameters(layer: Any) -> list[Any]:
    return [p for name, p in layer.named_parameters() if "experts." in name and "shared" not in name]
