"""`train judge`: what a checkpoint's exits are worth on documents that it has not seen, before a training or after it.

Agreement and expected calibration error are teacher-forced on the full model's own greedy continuation of each prompt,
which is what a runtime's exits meet; perplexity is of the document's own continuation, and so is the last layer's
calibration error, of "this is the document's next token".
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eecompile.calibrate.records import data_digest
from eecompile.errors import UsageError
from eecompile.student.exits import ExitSpec
from eecompile.student.student import open_student
from eecompile_training.analyze.measures import calibration_error
from eecompile_training.backbone import Backbone, codec_of
from eecompile_training.data import Tokens, read_documents
from eecompile_training.exits import TorchExits, read_exits
from eecompile_training.gates import exit_logits
from eecompile_training.settings import DataConfig
from eecompile_training.train_decoder import frozen_backbone

Progress = Callable[[str], None]
LAST: Final = "last"
ROWS: Final = 16  # documents together
_LONGEST: Final = 512


@dataclass(frozen=True)
class Question:
    """A prompt and how the document goes on, in tokens."""

    prompt: list[int]
    rest: list[int]

    @property
    def digest(self) -> bytes:
        """What chooses among documents."""
        return hashlib.sha256(np.array(self.prompt + self.rest, np.int64).tobytes()).digest()


@dataclass(frozen=True)
class Opened:
    """A checkpoint with its exits, shallow first."""

    backbone: Backbone
    exits: TorchExits
    end: int | None

    @property
    def places(self) -> Sequence[ExitSpec]:
        """The exits."""
        return sorted(self.exits.schema.exits, key=lambda e: e.depth)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.head.weight.device


def judge(
    checkpoint: Path, files: Mapping[str, Path], *, documents: int = 64, tokens: int = 64,
    progress: Progress = lambda stage: None,
) -> dict[str, Any]:  # fmt: skip
    """By name of the file, and by "after <n>" for each exit and "last": agreement, ece and perplexity.

    documents: of each file at most, chosen by hash; tokens: of a continuation at most. A document without a prompt is
    cut in half. An exit's perplexity is of the model's whole head on what the exit makes ready, whatever its own is.
    Raises UsageError for files without documents long enough.
    """
    student = open_student(checkpoint)
    backbone = frozen_backbone(student)
    exits = read_exits(student).to(backbone.head.weight.device)
    opened = Opened(backbone, exits, student.spec.eos[0] if student.spec.eos else None)
    found: dict[str, Any] = {}
    for name, file in files.items():
        questions = heapq.nsmallest(documents, _questions(opened, checkpoint, file, tokens), key=lambda q: q.digest)
        if not questions:
            raise UsageError("no document has a prompt and a continuation", where=str(file), mend="give longer ones")
        progress(f"judge {name}")
        rows = [_judged(opened, questions[i : i + ROWS], tokens) for i in range(0, len(questions), ROWS)]
        places = [*(f"after {e.depth}" for e in opened.places), LAST]
        figures = {place: _figures([r[i] for r in rows]) for i, place in enumerate(places)}
        del figures[LAST]["agreement"]  # with the document, of which perplexity says more
        found[name] = {"documents": len(questions), "sha256": data_digest(file), "exits": figures}
    return found


def _questions(opened: Opened, checkpoint: Path, file: Path, tokens: int) -> Iterator[Question]:
    config = DataConfig(files=[file], length=_LONGEST, rows="documents", loss_on="completion", held_out=0.0)
    codec = codec_of(checkpoint)
    for document, _ in read_documents(config, codec, vocab=opened.backbone.spec.vocab):
        whole = Tokens([*document.ids, *([] if opened.end is None else [opened.end])], document.learnt)
        first = whole.learnt or len(document.ids) // 2
        if 0 < first < len(whole.ids):
            yield Question(whole.ids[:first], whole.ids[first : first + tokens])


def _judged(opened: Opened, questions: Sequence[Question], tokens: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every exit and the last layer: agreements and confidences on the model's own continuations (the last layer's:
    on the documents'), and the losses on the documents'."""
    own = continuations(opened, [q.prompt for q in questions], tokens)
    agreeing = _forced(opened, [(q.prompt, rest) for q, rest in zip(questions, own, strict=True)])
    reading = _forced(opened, [(q.prompt, q.rest) for q in questions])
    agreeing[-1] = reading[-1]
    return [(a.agrees, a.confidence, r.loss) for a, r in zip(agreeing, reading, strict=True)]


@torch.inference_mode()
def continuations(opened: Opened, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """The greedy continuation of each prompt by all layers, its end token included, at most `tokens` long."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
    stop = {"eos_token_id": opened.end, "pad_token_id": 0 if opened.end is None else opened.end}
    model: Any = opened.backbone.model
    out = model.generate(
        ids.to(opened.device), attention_mask=mask.to(opened.device), max_new_tokens=tokens, do_sample=False, **stop
    )
    rows = out[:, longest:].tolist()
    return [row[: row.index(opened.end) + 1] if opened.end in row else row for row in rows]


@dataclass(frozen=True)
class _Forced:
    """Of one exit, for each token [N] that was forced: whether it agrees with the last layer (of that: with the token),
    how sure it is, and the token's loss in nats."""

    agrees: Tensor
    confidence: Tensor
    loss: Tensor


@torch.inference_mode()
def _forced(opened: Opened, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Forced]:
    backbone, exits = opened.backbone, opened.exits
    longest = max(len(prompt) + len(rest) for prompt, rest in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    asked = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (prompt, rest) in enumerate(pairs):
        whole = [*prompt, *rest]
        ids[row, : len(whole)] = torch.tensor(whole)
        asked[row, len(prompt) - 1 : len(whole) - 1] = True
    ids, follow, asked = ids.to(opened.device), ids.roll(-1, 1)[asked].to(opened.device), asked.to(opened.device)
    states = backbone(ids, [e.depth for e in opened.places])
    final = backbone.logits(states.finished[asked])
    found = []
    for exit_ in opened.places:
        hidden = states.hidden[exit_.depth]
        ready = exits.ready(exit_, hidden, backbone.norm(hidden))[asked]
        logits, known = exit_logits(backbone, exits, exit_.head, ready)
        confidence, best = logits.float().softmax(-1).max(-1)
        answers = best if known is None else known[best]
        found.append(_Forced(answers == final.argmax(-1), confidence, _losses(backbone.logits(ready), follow)))
    sure, best = final.float().softmax(-1).max(-1)
    return [*found, _Forced(best == follow, sure, _losses(final, follow))]


def _losses(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), tokens, reduction="none")


def _figures(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float | int]:
    agrees, sure, losses = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return {
        "agreement": float(agrees.mean()),
        "ece": calibration_error(sure, agrees),
        "perplexity": float(np.exp(losses.mean(dtype=np.float64))),
        "tokens": len(agrees),
    }
