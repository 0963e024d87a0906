"""What exits begin from, before any gradient: the student's own exits, the closed-form fit, or copies of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.rows import NormalEquations
from eecompile.calibrate.small_heads import HeadMatrix, SmallHead, fit_low_rank, fit_shortlist
from eecompile.student.exits import EarlyExit, ExitSpec
from eecompile.student.student import Student
from eecompile_training.backbone import Backbone
from eecompile_training.cache import HiddenCache
from eecompile_training.exit_settings import ExitsConfig
from eecompile_training.exits import TorchExits, new_exits, read_exits

Source = Literal["the student's own", "closed form", "copied", "as they are"]
_CHUNK: Final = 2048


@dataclass(frozen=True)
class StartedExits:
    """Exits with tensors to train, and by layer where each began from."""

    exits: TorchExits
    sources: Mapping[int, Source]


def started_exits(
    config: ExitsConfig, plan: ExitPlan, student: Student, backbone: Backbone, cache: HiddenCache
) -> StartedExits:
    """Exits without gates, at `config.at`. cache: of the rows that they will learn from.

    An exit that the student has already, with the same adapter, goes on from there; a translator begins as
    `eecompile exits --fit` solves it, a module as a copy (exits.new_exits). Small heads are fitted in closed form.
    """
    adapter = config.adapter or "affine"
    sums = [NormalEquations(student.spec.hidden) for _ in config.at]
    counts = np.zeros(student.spec.vocab, np.int64)
    needed = adapter == "affine" or plan.heads
    if needed:
        _accumulate(sums, counts, backbone, cache)
    maps = [s.solve() for s in sums] if needed else []
    heads = _heads(plan, HeadMatrix.of(student), sums, maps, counts)
    specs = [ExitSpec(layer=n, adapter=adapter, gates=["max_prob"]) for n in config.at]
    tensors = new_exits(EarlyExit(exits=specs), student).tensors()
    asked = [spec.model_copy(update={"head": plan.head}) for spec in specs]
    schema = EarlyExit(exits=asked, heads=[h.shape for h in heads], **student.exits.schedules)
    tensors |= {f"head.{h.shape.name}.{part}": torch.from_numpy(t) for h in heads for part, t in h.tensors.items()}
    sources: dict[int, Source] = dict.fromkeys(config.at, "copied" if adapter in ("mlp", "layer") else "as they are")
    if adapter == "affine":
        for n, (weight, bias) in zip(config.at, maps, strict=True):
            tensors |= {f"exit.{n}.adapter.weight": _tensor(weight), f"exit.{n}.adapter.bias": _tensor(bias)}
            sources[n] = "closed form"
    for n, own in _own(student, specs).items():
        tensors |= own
        sources[n] = "the student's own"
    return StartedExits(TorchExits(schema, student.spec, tensors), sources)


def _own(student: Student, specs: Sequence[ExitSpec]) -> dict[int, dict[str, Tensor]]:
    """The tensors of exits that the student has and that are of the kind that is asked for, by layer."""
    known = {(e.layer, e.adapter, e.placement) for e in student.exits.schema.exits if e.adapter != "norm"}
    stored = read_exits(student).tensors()
    found = {}
    for e in specs:
        if (e.layer, e.adapter, e.placement) in known:
            names = [n for n in stored if n.startswith(f"exit.{e.layer}.")]
            found[e.layer] = {n: stored[n] for n in names if n.split(".")[2] not in ("gate", "router", "predictor")}
    return found


@torch.inference_mode()
def _accumulate(sums: Sequence[NormalEquations], counts: np.ndarray, backbone: Backbone, cache: HiddenCache) -> None:
    device = backbone.head.weight.device
    for states, labels in cache.chunks(_CHUNK):
        for g, total in enumerate(sums):
            total.add(backbone.norm(torch.from_numpy(states[:, g]).to(device)).cpu().numpy(), states[:, -1])
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))


def _heads(
    plan: ExitPlan, matrix: HeadMatrix, sums: list[NormalEquations], maps: list[tuple[np.ndarray, np.ndarray]],
    counts: np.ndarray,
) -> list[SmallHead]:  # fmt: skip
    heads = []
    if "shortlist" in plan.heads:
        heads.append(fit_shortlist(matrix, counts, plan.tokens))
    if "low_rank" in plan.heads:
        heads.append(fit_low_rank(matrix, list(zip(sums, maps, strict=True)), plan.rank))
    return heads


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
