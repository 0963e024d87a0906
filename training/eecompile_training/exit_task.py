"""Exits of a language model, trained on cached states to say what the last layer says.

KL from the last layer's own distribution is self-supervised exits' loss (DSSD, and Balcony's): text only provides
states. Cross-entropy of the text's next token is EE-Tuning's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from eecompile import contract as c
from eecompile.student.exits import ExitSpec
from eecompile_training.backbone import Backbone
from eecompile_training.cache import HiddenCache
from eecompile_training.classifier_task import coverage
from eecompile_training.exit_settings import ExitsConfig
from eecompile_training.exits import TorchExits
from eecompile_training.rows import Ints

_ROWS: Final = 256  # that are judged together


@dataclass(frozen=True)
class StateBatch:
    """states [B, T, G + 1, D] and labels [B, T, 2] (exit_states.LABELS); mask [B, T]: what is no padding."""

    states: Tensor
    labels: Tensor
    mask: Tensor


def rows_batch(cache: HiddenCache, rows: Ints) -> StateBatch:
    """Rows of these numbers, each a sequence of its own."""
    states, labels = (torch.from_numpy(a)[:, None] for a in cache.take(rows))
    return StateBatch(states, labels, torch.ones(labels.shape[:2], dtype=torch.bool))


def documents_batch(cache: HiddenCache, documents: Ints) -> StateBatch:
    """Whole documents of these numbers, padded on the right."""
    parts = [cache.document(int(n)) for n in documents]
    longest = max(len(labels) for _, labels in parts)
    states = torch.zeros(len(parts), longest, *cache.index.shape)
    labels = torch.full((len(parts), longest, cache.index.labels), -1)
    mask = torch.zeros(len(parts), longest, dtype=torch.bool)
    for i, (own, marks) in enumerate(parts):
        states[i, : len(own)], labels[i, : len(own)] = torch.from_numpy(own), torch.from_numpy(marks)
        mask[i, : len(own)] = True
    return StateBatch(states, labels, mask)


class ExitReader:
    """What exits make of cached states."""

    def __init__(self, backbone: Backbone, exits: TorchExits) -> None:
        self.backbone, self.exits = backbone, exits
        self.sequences = any(e.adapter == "layer" for e in exits.schema.exits)
        self._heads = {head.name: head for head in exits.schema.heads}

    def batch(self, cache: HiddenCache, units: Ints) -> StateBatch:
        """Rows, or documents where an exit attends, on the model's device."""
        found = (documents_batch if self.sequences else rows_batch)(cache, units)
        device = self.backbone.head.weight.device
        return StateBatch(found.states.to(device), found.labels.to(device), found.mask.to(device))

    def units(self, cache: HiddenCache) -> int:
        """How many there are to draw."""
        return cache.index.documents if self.sequences else cache.rows

    def ready(self, g: int, exit_: ExitSpec, batch: StateBatch) -> Tensor:
        """What the head of exit g reads [n, D], for the rows that are no padding."""
        hidden = batch.states[:, :, g]
        return self.exits.ready(exit_, hidden, self.backbone.norm(hidden))[batch.mask]

    def logits(self, name: str, ready: Tensor) -> Tensor:
        """Of the head of this name: [n, V], or [n, its tokens]."""
        if name == c.FULL_HEAD:
            return self.backbone.logits(ready)
        return self.exits.small_logits(self._heads[name], ready, self.backbone.head.weight, self.backbone.head.bias)

    def tokens(self, name: str, logits: Tensor) -> Tensor:
        """The head's answers [n]."""
        best = logits.argmax(-1)
        known = [] if name == c.FULL_HEAD else self._heads[name].tokens
        return torch.tensor(known, device=best.device)[best] if known else best

    def columns(self, name: str) -> Tensor | None:
        """The tokens that the head's logits are of; None where it has them all."""
        known = [] if name == c.FULL_HEAD else self._heads[name].tokens
        return torch.tensor(known, device=self.backbone.head.weight.device) if known else None

    def parts(self, cache: HiddenCache, most: int) -> Iterator[StateBatch]:
        """About `most` rows of a cache, evenly spread, some at a time."""
        count = self.units(cache)
        wanted = most if not self.sequences else max(1, most * count // max(1, cache.rows))
        chosen = np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))
        together = _ROWS if not self.sequences else max(1, _ROWS * count // max(1, cache.rows))
        for start in range(0, len(chosen), together):
            yield self.batch(cache, chosen[start : start + together])


class ExitTask:
    """All exits, and the small heads they share, at once; losses by exit."""

    name = "exits"

    def __init__(self, reader: ExitReader, learn: HiddenCache, judge: HiddenCache, config: ExitsConfig) -> None:
        self._reader, self._learn, self._judge, self._config = reader, learn, judge, config
        self.units = reader.units(learn)

    @property
    def modules(self) -> nn.Module:
        """The exits' tensors."""
        return self._reader.exits

    def losses(self, units: Ints) -> dict[str, Tensor]:
        """By exit, a mean over rows."""
        reader, batch = self._reader, self._reader.batch(self._learn, units)
        with torch.no_grad():
            wanted = reader.backbone.logits(batch.states[:, :, -1][batch.mask])
        following, found = batch.labels[..., 0][batch.mask], dict[str, Tensor]()
        for g, exit_ in enumerate(reader.exits.schema.exits):
            logits = reader.logits(exit_.head, reader.ready(g, exit_, batch))
            found[f"exit.{exit_.layer}"] = self._loss(logits, wanted, following, reader.columns(exit_.head))
        return found

    def evaluate(self) -> dict[str, float]:
        """Agreement, coverage and KL of each exit on judging documents."""
        figures = judged_exits(self._reader, self._judge, self._config.evaluate_rows)
        return {f"exit.{n}.{k}": v for n, found in figures.items() for k, v in found.items()}

    def _loss(self, logits: Tensor, wanted: Tensor, following: Tensor, columns: Tensor | None) -> Tensor:
        if self._config.target == "kl":
            wanted = wanted if columns is None else wanted[:, columns]
            return kl_loss(logits, wanted, self._config.temperature)
        target = following if columns is None else _places(following, columns)
        counted = target >= 0
        return functional.cross_entropy(logits[counted], target[counted])


def kl_loss(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(softmax(wanted / T) || softmax(logits / T)) T^2 over rows of logits [n, V]."""
    own, target = (functional.log_softmax(z / temperature, dim=-1) for z in (logits, wanted))
    return temperature**2 * functional.kl_div(own, target, log_target=True, reduction="batchmean")


@torch.no_grad()
def judged_exits(reader: ExitReader, cache: HiddenCache, most: int) -> dict[int, dict[str, float]]:
    """By layer, how each exit does on about `most` rows: agreement with the full model's token, the share that may
    leave by max_prob with 99% of them right (coverage), and KL from the last layer (a shortlist: among its tokens)."""
    exits: Sequence[ExitSpec] = reader.exits.schema.exits
    right: list[list[Tensor]] = [[] for _ in exits]
    sure: list[list[Tensor]] = [[] for _ in exits]
    total, rows = [0.0] * len(exits), 0
    for batch in reader.parts(cache, most):
        wanted = reader.backbone.logits(batch.states[:, :, -1][batch.mask])
        final, count = batch.labels[..., 1][batch.mask], int(batch.mask.sum())
        rows += count
        for g, exit_ in enumerate(exits):
            logits, columns = reader.logits(exit_.head, reader.ready(g, exit_, batch)), reader.columns(exit_.head)
            right[g].append(reader.tokens(exit_.head, logits) == final)
            sure[g].append(logits.softmax(-1).amax(-1))
            total[g] += float(kl_loss(logits, wanted if columns is None else wanted[:, columns])) * count
    found = {}
    for g, exit_ in enumerate(exits):
        agrees, sureness = torch.cat(right[g]).cpu().numpy(), torch.cat(sure[g]).cpu().numpy()
        figures = {"agreement": float(agrees.mean()), "coverage": coverage(sureness, agrees), "kl": total[g] / rows}
        found[exit_.layer] = figures
    return found


def _places(tokens: Tensor, columns: Tensor) -> Tensor:
    """Where each token is among `columns`; -1 where it is not."""
    same = tokens[:, None] == columns[None, :]
    return torch.where(same.any(1), same.float().argmax(1), -1)
