"""Gates of trained exits: each learns whether its exit agrees, on documents that the exit did not learn from.

The gates themselves are those of `eecompile exits` and are trained as there (calibrate/gate.py): the learned gate by
the logistic loss of "this exit agrees" (CALM), a router by that of the first exit that does, a predictor by whether the
exit is right and its token one of the candidates (SpecEE).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.calibrate.gate import train_gate
from eecompile.calibrate.plan import PREDICTOR_UNITS, UNITS, ExitPlan
from eecompile_training.cache import HiddenCache
from eecompile_training.exit_task import ExitReader, StateBatch, documents_batch
from eecompile_training.exits import predictor_features
from eecompile_training.rows import Progress

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
_HELD_OUT: Final = 5  # every fifth document only stops a gate's training
_TOGETHER: Final = 256  # rows, about
SHORTLIST: Final = "shortlist"


@dataclass(frozen=True)
class Judged:
    """Of n rows and G exits. agrees [n, G]; document [n]; features: of each exit's predictor [n, 3 K], and whether its
    candidates have the full model's token [n, G]; both empty without predictors."""

    agrees: Bool
    document: NDArray[np.int64]
    features: list[Float]
    confirmed: Bool


def train_gates(
    most: int, plan: ExitPlan, reader: ExitReader, cache: HiddenCache, seed: int, progress: Progress
) -> dict[str, Float]:
    """The gates' tensors by name, learnt from about `most` rows. Deterministic for a seed.

    Memory: the rows of one exit in float16.
    """
    if not {"learned", "router", "predictor"} & set(plan.gates):
        return {}
    progress("judge the exits for their gates")
    found = _judged(most, plan, reader, cache)
    held_out = found.document % _HELD_OUT == 0
    tensors: dict[str, Float] = {}
    for g, exit_ in enumerate(reader.exits.schema.exits):
        if "learned" in plan.gates:
            progress(f"learned gate of exit {exit_.layer}")
            rows = _rows(most, reader, cache, g, normed=True)
            _put(tensors, exit_.layer, "gate", train_gate(rows, found.agrees[:, g], held_out, units=UNITS, seed=seed))
        if "predictor" in plan.gates:
            progress(f"predictor of exit {exit_.layer}")
            right = found.agrees[:, g] & found.confirmed[:, g]
            own = train_gate(found.features[g], right, held_out, units=PREDICTOR_UNITS, activation="relu", seed=seed)
            _put(tensors, exit_.layer, c.PREDICTOR, own)
    if "router" in plan.gates:
        progress("router")
        depth = np.append(found.agrees, np.ones((len(held_out), 1), np.bool_), axis=1).argmax(axis=1)
        rows, count = _rows(most, reader, cache, 0, normed=False), found.agrees.shape[1] + 1
        layer = reader.exits.schema.exits[0].layer
        _put(tensors, layer, c.ROUTER, train_gate(rows, depth, held_out, units=0, outputs=count, seed=seed))
    return tensors


@torch.no_grad()
def _judged(most: int, plan: ExitPlan, reader: ExitReader, cache: HiddenCache) -> Judged:
    exits = reader.exits.schema.exits
    predicts = "predictor" in plan.gates
    agrees, owners = list[Bool](), list[NDArray[np.int64]]()
    confirmed, features = list[Bool](), [list[Float]() for _ in exits]
    for documents, batch in _batches(most, reader, cache):
        final = batch.labels[..., 1][batch.mask]
        owners.append(np.repeat(documents, batch.mask.sum(1).cpu().numpy()))
        said, covered, chosen, local = [], [], None, None
        for g, exit_ in enumerate(exits):
            ready = reader.ready(g, exit_, batch)
            said.append(reader.tokens(exit_.head, reader.logits(exit_.head, ready)) == final)
            if predicts:
                own, chosen, local = predictor_features(reader.logits(SHORTLIST, ready), chosen, local)
                columns = reader.columns(SHORTLIST)
                assert columns is not None
                covered.append((columns[chosen] == final[:, None]).any(1))
                features[g].append(own.cpu().numpy())
        agrees.append(torch.stack(said, 1).cpu().numpy())
        confirmed.append(torch.stack(covered, 1).cpu().numpy() if predicts else np.zeros((len(final), 0), np.bool_))
    joined = [np.concatenate(parts) for parts in features] if predicts else []
    return Judged(np.concatenate(agrees), np.concatenate(owners), joined, np.concatenate(confirmed))


@torch.no_grad()
def _rows(
    most: int, reader: ExitReader, cache: HiddenCache, exit_: int, *, normed: bool
) -> NDArray[np.float16]:  # fmt: skip
    """What gates of an exit read [n, D]: the state as it is, or after the model's final norm."""
    parts = []
    for _, batch in _batches(most, reader, cache):
        rows = batch.states[:, :, exit_][batch.mask]
        parts.append((reader.backbone.norm(rows) if normed else rows).cpu().numpy().astype(np.float16))
    return np.concatenate(parts)


def _batches(most: int, reader: ExitReader, cache: HiddenCache) -> Iterator[tuple[NDArray[np.int64], StateBatch]]:
    """Whole documents of about `most` rows, evenly spread, with their numbers."""
    count, device = cache.index.documents, reader.backbone.head.weight.device
    wanted = min(count, max(1, most * count // max(1, cache.rows)))
    chosen = np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))
    together = max(1, _TOGETHER * count // max(1, cache.rows))
    for start in range(0, len(chosen), together):
        numbers = chosen[start : start + together]
        found = documents_batch(cache, numbers)
        yield numbers, StateBatch(found.states.to(device), found.labels.to(device), found.mask.to(device))


def _put(tensors: dict[str, Float], layer: int, kind: str, weights: Mapping[str, Float]) -> None:
    tensors.update({f"exit.{layer}.{kind}.{part}": np.asarray(t, np.float32) for part, t in weights.items()})
