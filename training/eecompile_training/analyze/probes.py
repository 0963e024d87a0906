"""Probes: ways to read an answer out of the state after a layer.

`lens`: the model's own norm and head (the logit lens, nostalgebraist, 2020). `translator`: the same behind an affine
map to the last layer's rows, fitted in closed form (calibrate/rows.py; after the tuned lens of Belrose et al., 2023).
`exit`: what a student has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from eecompile import contract as c
from eecompile.calibrate.rows import NormalEquations
from eecompile.student.modules import MODULES
from eecompile.student.student import Student
from eecompile_training.analyze.passages import Passage
from eecompile_training.analyze.subject import Subject
from eecompile_training.exits import TorchExits, read_exits

Kind = Literal["lens", "translator", "exit"]
Progress = Callable[[str], None]
_SUMS_BYTES: Final = 1 << 30  # of normal equations held at a time


@dataclass(frozen=True)
class Probe:
    """ready: the states of a whole sequence [T, D] -> rows that `logits` takes. logits: [N, D] -> [N, its tokens].

    tokens: the token of each logit where they are not all in order. head, adapter: weights that a pass of either
    reads; the head's None where it is the model's own.
    """

    kind: Kind
    layer: int
    ready: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    tokens: Tensor | None = None
    head: int | None = None
    adapter: int = 0


def lenses(subject: Subject, layers: Sequence[int]) -> list[Probe]:
    """The model's norm and head after each of `layers`."""
    return [Probe("lens", n, subject.norm, subject.logits) for n in layers]


def fit_translators(
    subject: Subject, layers: Sequence[int], passages: Sequence[Passage], progress: Progress
) -> list[Probe]:
    """A ridge-regressed translator after each of `layers`, fitted on the counted rows of `passages`.

    Memory: (D + 1) x (2 D + 1) doubles a layer, at most 1 GiB at a time (and one layer at least): more layers take more
    passes over the passages.
    """
    size = subject.hidden_size
    group = max(1, _SUMS_BYTES // (8 * (size + 1) * (2 * size + 1)))
    found: list[Probe] = []
    for start in range(0, len(layers), group):
        part = layers[start : start + group]
        sums = {n: NormalEquations(size) for n in part}
        for number, passage in enumerate(passages):
            progress(f"fit translators of layers {part[0]} to {part[-1]}, document {number + 1}")
            walked = subject.walk(passage.ids, part)
            target = walked.finished[passage.first :].numpy()
            for n in part:
                sums[n].add(subject.norm(walked.hidden[n])[passage.first :].numpy(), target)
        found += [_translator(subject, n, sums[n]) for n in part]
    return found


def exit_probes(subject: Subject, student: Student) -> list[Probe]:
    """The exits of the student whose backbone `subject` is."""
    exits = read_exits(student).requires_grad_(False)
    heads = {head.name: head for head in exits.schema.heads}
    found = []
    for exit_ in exits.schema.exits:
        adapter = sum(t.numel() for name, t in exits.tensors().items() if name.startswith(f"exit.{exit_.layer}."))
        ready = _exit_rows(subject, exits, exit_.layer)
        if exit_.head == c.FULL_HEAD:
            found.append(Probe("exit", exit_.depth, ready, subject.logits, adapter=adapter))
            continue
        head = heads[exit_.head]
        tokens = torch.tensor(head.tokens) if head.kind == "shortlist" else None
        weights = head.weights(subject.hidden_size, subject.vocab)
        logits = _small_logits(subject, exits, exit_.head)
        found.append(Probe("exit", exit_.depth, ready, logits, tokens, weights, adapter))
    return found


def _translator(subject: Subject, layer: int, sums: NormalEquations) -> Probe:
    weight, bias = (torch.from_numpy(array) for array in sums.solve())

    def ready(hidden: Tensor) -> Tensor:
        return subject.norm(hidden) @ weight + bias

    return Probe("translator", layer, ready, subject.logits, adapter=weight.numel() + bias.numel())


def _exit_rows(subject: Subject, exits: TorchExits, layer: int) -> Callable[[Tensor], Tensor]:
    exit_ = next(e for e in exits.schema.exits if e.layer == layer)

    def ready(hidden: Tensor) -> Tensor:
        normed = hidden if exit_.adapter in MODULES else subject.norm(hidden)
        return exits.ready(exit_, hidden[None], normed[None])[0]

    return ready


def _small_logits(subject: Subject, exits: TorchExits, name: str) -> Callable[[Tensor], Tensor]:
    head = next(h for h in exits.schema.heads if h.name == name)
    own = subject.model.get_output_embeddings()
    full, bias = own.weight.detach(), None if getattr(own, "bias", None) is None else own.bias.detach()
    return lambda ready: exits.small_logits(head, ready, full, bias)
