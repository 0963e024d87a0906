"""Classifiers at an encoder's exits, trained on cached states to say what the last layer says."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eecompile.calibrate.classifier_exits import RidgeSums
from eecompile.student.encoder import EncoderSpec
from eecompile.student.encoder_student import EncoderStudent
from eecompile_training.backbone import ENCODER_ACTIVATIONS
from eecompile_training.cache import HiddenCache
from eecompile_training.rows import Ints

Float = NDArray[np.float32]
SURE: Final = 0.99  # agreement that `coverage` is at
_CHUNK: Final = 4096


class Classifier(nn.Module):
    """rows [N, D] -> logits [N, C]: a linear map, after a pooler where there is one. Matrices are [in, out]."""

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, Float]) -> None:
        super().__init__()
        self.activation = spec.pooler
        self.parts = nn.ParameterDict({n.replace(".", "_"): nn.Parameter(torch.tensor(t)) for n, t in tensors.items()})

    def forward(self, rows: Tensor) -> Tensor:
        """The logits."""
        if "pooler_weight" in self.parts:
            assert self.activation is not None
            rows = ENCODER_ACTIVATIONS[self.activation](rows @ self.parts["pooler_weight"] + self.parts["pooler_bias"])
        return rows @ self.parts["classifier_weight"] + self.parts["classifier_bias"]

    def tensors(self) -> dict[str, Float]:
        """Its tensors by part, as early_exit.safetensors has them."""
        return {n.replace("_", "."): p.detach().numpy().copy() for n, p in self.parts.items()}


class ClassifierTask:
    """The exits' classifiers. Loss of each: KL from the last layer's distribution (a regression: square error)."""

    name = "exits"

    def __init__(
        self, student: EncoderStudent, classifiers: Sequence[Classifier], parts: Sequence[HiddenCache],
        temperature: float, most: int,
    ) -> None:  # fmt: skip
        self._train, self._judge = parts
        self._layers = [e.layer for e in student.exits.schema.exits]
        self._temperature, self._most = temperature, most
        self._regression, self._final = student.spec.task == "regression", own_classifier(student)
        self.units = self._train.rows
        self.modules = nn.ModuleList(classifiers)

    def losses(self, units: Ints) -> dict[str, Tensor]:
        """By exit."""
        states = torch.from_numpy(self._train.take(units)[0])
        with torch.no_grad():
            wanted = self._final(states[:, -1])
        said = [classifier(states[:, g]) for g, classifier in enumerate(self.modules)]
        return {f"exit.{n}": self._loss(z, wanted) for n, z in zip(self._layers, said, strict=True)}

    def evaluate(self) -> dict[str, float]:
        """Agreement, coverage and loss of each exit on judging documents."""
        figures = [judged(m, self._final, self._judge, g, self._most) for g, m in enumerate(self.modules)]
        return {f"exit.{n}.{k}": v for n, found in zip(self._layers, figures, strict=True) for k, v in found.items()}

    def _loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if self._regression:
            return functional.mse_loss(logits, wanted)
        t = self._temperature
        target = functional.log_softmax(wanted / t, dim=-1)
        return t * t * functional.kl_div(
            functional.log_softmax(logits / t, dim=-1), target, log_target=True, reduction="batchmean"
        )  # fmt: skip


def own_classifier(student: EncoderStudent) -> Classifier:
    """The model's own pooler, where it has one, and classifier."""
    spec, names = student.spec, student.spec.names
    tensors = {}
    for part, name in (("pooler", names.pooler), ("classifier", names.classifier)):
        if part == "classifier" or spec.pooler is not None:
            tensors[f"{part}.weight"] = student.store.read(f"{name}.weight").T.copy()
            tensors[f"{part}.bias"] = student.store.read(f"{name}.bias")
    return Classifier(spec, tensors)


def closed_form(student: EncoderStudent, cache: HiddenCache, start: NDArray[np.float64]) -> list[dict[str, Float]]:
    """Each exit's classifier as `eecompile exits` fits it, from the cached rows."""
    final, regression = own_classifier(student), student.spec.task == "regression"
    sums = [RidgeSums.of(student.spec.hidden, len(student.spec.labels)) for _ in student.exits.schema.exits]
    for states, _ in cache.chunks(_CHUNK):
        with torch.no_grad():
            wanted = final(torch.from_numpy(states[:, -1])).numpy()
        wanted = wanted if regression else wanted - wanted.mean(axis=1, keepdims=True)
        for g, total in enumerate(sums):
            total.add(states[:, g], wanted)
    solved = [total.solve(start).astype(np.float32) for total in sums]
    return [{"classifier.weight": found[:-1], "classifier.bias": found[-1]} for found in solved]


@torch.no_grad()
def judged(classifier: nn.Module, final: nn.Module, cache: HiddenCache, exit_: int, most: int) -> dict[str, float]:
    """How an exit does on at most `most` rows of `cache`, evenly spread.

    agreement: share of answers that are the last layer's (a regression: the correlation). kl: of the distributions (a
    regression: the square error). coverage: the largest share of rows that a threshold of max_prob lets through with
    at least 99% of them right.
    """
    rows = np.unique(np.linspace(0, cache.rows - 1, min(most, cache.rows)).astype(np.int64))
    said, wanted = [], []
    for start in range(0, len(rows), _CHUNK):
        states = torch.from_numpy(cache.take(rows[start : start + _CHUNK])[0])
        said.append(classifier(states[:, exit_]))
        wanted.append(final(states[:, -1]))
    z, full = torch.cat(said), torch.cat(wanted)
    if z.shape[1] == 1:
        both = torch.stack([z[:, 0], full[:, 0]])
        return {"agreement": float(torch.corrcoef(both)[0, 1]), "kl": float(functional.mse_loss(z, full))}
    right = z.argmax(dim=1) == full.argmax(dim=1)
    own, target = functional.log_softmax(z, dim=1), functional.log_softmax(full, dim=1)
    kl = functional.kl_div(own, target, log_target=True, reduction="batchmean")
    sure = coverage(own.max(dim=1).values.numpy(), right.numpy())
    return {"agreement": float(right.double().mean()), "kl": float(kl), "coverage": sure}


def coverage(sureness: Float, right: NDArray[np.bool_]) -> float:
    """The largest share of rows, surest first, of which at least 99% are right; ties stand together."""
    order = np.argsort(-sureness, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    ends = np.append(sureness[order][1:] != sureness[order][:-1], True)
    good = np.flatnonzero((share >= SURE) & ends)
    return float((good[-1] + 1) / len(order)) if len(good) else 0.0
