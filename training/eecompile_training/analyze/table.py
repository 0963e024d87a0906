"""What every probe says of every counted token: a few numbers each, whatever the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from eecompile_training.analyze.passages import Passage
from eecompile_training.analyze.probes import Probe, Progress
from eecompile_training.analyze.subject import Subject

Bool = NDArray[np.bool_]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """One probe over N tokens, each [N]. agrees: its first choice is the full model's. max_prob: of that choice. kl:
    KL(p_full || p), nats; loss: -log p of the document's next token, nats; both NaN of a shortlist. cosine: of the
    states after this layer and after the last."""

    agrees: Bool
    max_prob: Float
    kl: Float
    loss: Float
    cosine: Float


@dataclass(frozen=True)
class Table:
    """N tokens of passages. document [N]: the passage of each; loss [N]: the full model's, NaN where a passage ends."""

    document: NDArray[np.int64]
    loss: Float
    probes: list[Said]

    @property
    def tokens(self) -> int:
        return len(self.document)


@torch.no_grad()
def measure(subject: Subject, probes: Sequence[Probe], passages: Sequence[Passage], progress: Progress) -> Table:
    """Ask every probe about every counted token of `passages`, teacher-forced.

    Memory: the logits of some rows, a passage's states at every layer, and 17 bytes a token and probe.
    """
    at = sorted({probe.layer for probe in probes} | {subject.depth})
    losses, documents = list[Float](), list[NDArray[np.int64]]()
    parts: list[list[Said]] = [[] for _ in probes]
    for number, passage in enumerate(passages):
        progress(f"measure document {number + 1} of {len(passages)}")
        walked = subject.walk(passage.ids, at)
        last, rows = walked.hidden[subject.depth], [probe.ready(walked.hidden[probe.layer]) for probe in probes]
        follow = torch.tensor([*passage.ids[1:], -1])
        for start in range(passage.first, len(passage.ids), subject.rows_at_a_time):
            part = slice(start, start + subject.rows_at_a_time)
            full = torch.log_softmax(subject.logits(walked.finished[part]), dim=-1)
            losses.append(_loss(full, follow[part]))
            documents.append(np.full(len(full), number))
            for probe, ready, found in zip(probes, rows, parts, strict=True):
                cosine = functional.cosine_similarity(walked.hidden[probe.layer][part], last[part], dim=-1)
                found.append(_said(probe, ready[part], full, follow[part], cosine))
    return Table(np.concatenate(documents), np.concatenate(losses), [_joined(found) for found in parts])


def _said(probe: Probe, ready: Tensor, full: Tensor, follow: Tensor, cosine: Tensor) -> Said:
    log_p = torch.log_softmax(probe.logits(ready), dim=-1)
    top, place = log_p.max(dim=-1)
    token = place if probe.tokens is None else probe.tokens[place]
    nothing = torch.full_like(top, torch.nan)
    kl = nothing if probe.tokens is not None else (full.exp() * (full - log_p)).sum(dim=-1)
    loss = nothing.numpy() if probe.tokens is not None else _loss(log_p, follow)
    return Said((token == full.argmax(dim=-1)).numpy(), top.exp().numpy(), kl.numpy(), loss, cosine.numpy())


def _loss(log_p: Tensor, follow: Tensor) -> Float:
    picked = log_p.gather(-1, follow.clamp_min(0)[:, None])[:, 0]
    found: Float = torch.where(follow >= 0, -picked, torch.nan).numpy()
    return found


def _joined(parts: Sequence[Said]) -> Said:
    names = ("agrees", "max_prob", "kl", "loss", "cosine")
    return Said(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
