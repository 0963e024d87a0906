"""What a pass of some rows through layers or a head takes on a target: measured on it, or by the cost model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from eecompile import contract as c
from eecompile.bench.cost import PassCosts
from eecompile.bench.cost_model import outline
from eecompile.bench.rates import Rates, rates_from_target
from eecompile.bench.work import LAYER_KERNELS, SMALL_KERNELS, STORED, Work
from eecompile.bundle.manifest import ExitInfo, Manifest, Step
from eecompile.bundle.read import read_bundle
from eecompile.errors import UsageError
from eecompile.pipeline import DEFAULT_CONTEXT
from eecompile.target import Target
from eecompile_training.analyze.subject import Subject

LENGTH: Final = 256  # tokens in the cache of the step that is priced
ROWS: Final = (1, 2, 3, 5, 9)
EXIT_HEAD: Final = "small"
Curve = Callable[[int], float]


@dataclass(frozen=True)
class Prices:
    """Seconds of a pass by its rows (or bytes, where the target's rate is not known: then only ratios mean something):
    of a layer, of the model's head, and of `weights(n, rows)`, a matrix of n weights. `launch` is what any pass takes
    besides. `basis` says where they are from.
    """

    layer: Curve
    head: Curve
    weights: Callable[[int, int], float]
    basis: str
    launch: float = 0.0

    def full(self, depth: int) -> float:
        """Seconds of a token through the uncut model: embedding, layers, head."""
        return 3 * self.launch + depth * self.layer(1) + self.head(1)


def prices_of_target(subject: Subject, target: Target) -> Prices:
    """By the cost model (bench/rates.py), in the target's own precision.

    Where the target has no data sheet, as the processor at hand, passes cost the bytes that they read: more rows then
    cost only those, which flatters catch-up passes on a processor that computes slowly.
    """
    known = target.bandwidth > 0
    bytes_ = f"bytes that a pass reads in {target.precision}; arithmetic of more rows not counted"
    engine = known and target.backend != "onnxruntime"
    compute = "float16" if engine and target.precision != "fp32" else "float32"
    rates = rates_from_target(target, compute) if known else Rates(1.0, 0.0, 0.0, 0.0, False, 0.0, bytes_)
    length = DEFAULT_CONTEXT + c.SLACK if engine else LENGTH
    kept, size = (2.0 if engine else 4.0) * key_values(subject), STORED[target.precision]
    stored, active = layer_weights(subject)

    def seconds(work: Work, rows: int, tokens: int = 0) -> float:
        return rates.seconds(work, rows, tokens) - rates.launch

    def layer(rows: int) -> float:
        work = Work(
            size * stored(rows), active, cached=kept, attended=attended(subject), kernels=LAYER_KERNELS, layers=1
        )
        return seconds(work, rows, length if engine else length + rows)

    def weights(count: int, rows: int) -> float:
        return seconds(Work(size * count, count, kernels=SMALL_KERNELS), rows)

    table = subject.vocab * subject.hidden_size
    return Prices(layer, lambda rows: weights(table, rows), weights, rates.basis, rates.launch)


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

    name = c.FULL_HEAD if head is None else EXIT_HEAD
    exits = [ExitInfo(layer=layer, adapter="affine", gates=["max_prob"], head=name)]
    manifest = outline(exits, [Step(segment=0, cache=0, exit=0), Step(segment=1, cache=1)], [layer, depth - layer])
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
        graph: {rows: (lengths, np.array([prices.launch + curve(rows)])) for rows in ROWS}
        for graph, curve in passes.items()
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


def attended(subject: Subject) -> int:
    """Multiplications of a row for each token that it attends to: with its key, and by its value, in every head."""
    config = subject.config
    heads = getattr(config, "num_attention_heads", 0) or 0
    return 2 * heads * int(getattr(config, "head_dim", None) or subject.hidden_size // max(1, heads))


def _expert_counts(config: Any) -> tuple[int, int]:
    """(experts of a layer, how many a row takes); (1, 1) of a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(getattr(config, n)) for n in names if getattr(config, n, None)), 1)
    return experts, min(experts, int(getattr(config, "num_experts_per_tok", None) or experts))


def _expert_parameters(layer: Any) -> list[Any]:
    return [p for name, p in layer.named_parameters() if "experts." in name and "shared" not in name]
