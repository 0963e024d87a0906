"""The hidden states of a frozen language model on documents, in caches: of documents that exits learn from, that gates
learn from, and that judge both. Splits are those of calibration, whose test documents are never seen here."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from eecompile.calibrate.documents import Document, Documents, Split
from eecompile.calibrate.tables import REPORT_EVERY
from eecompile.errors import NumericError
from eecompile_training.backbone import Backbone, codec_of
from eecompile_training.cache import CacheWriter, HiddenCache, StateType, find_cache, writing_caches
from eecompile_training.rows import Progress

PARTS: Final = ("learn", "gate", "judge")
LABELS: Final = ("following", "final")  # the token that follows (-1 after the last), and the full model's own
GATE_EVERY: Final = 4  # every fourth fit document is for gates
_SPLITS: Final[tuple[Split, ...]] = ("fit", "path")
_TOGETHER: Final = 8  # documents in one pass
_LOGIT_ROWS: Final = 256


def cached_states(
    root: Path, backbone: Backbone, checkpoint: Path, facts: dict[str, Any], documents: Documents, at: Sequence[int],
    dtype: StateType, progress: Progress,
) -> list[HiddenCache]:  # fmt: skip
    """The caches of PARTS: states [T, len(at) + 1, D] after each of `at` layers and finished, labels [T, 2] as LABELS.

    What is not under `root` is computed by `backbone`, the model of `checkpoint`. facts: of the checkpoint.
    Raises NumericError where the model computes no finite number.
    """
    own = {
        **facts, "data": documents.sha256, "cutoff": documents.cutoff, "length": documents.max_tokens,
        "layers": list(at), "dtype": dtype,
    }  # fmt: skip
    wanted = [{**own, "part": part} for part in PARTS]
    if any(find_cache(root, facts) is None for facts in wanted):
        with writing_caches(root, wanted, dtype) as writers:
            _fill(dict(zip(PARTS, writers, strict=True)), backbone, checkpoint, documents, at, progress)
    found = [find_cache(root, facts) for facts in wanted]
    return [cache for cache in found if cache is not None]


@torch.inference_mode()
def _fill(
    writers: dict[str, CacheWriter], backbone: Backbone, checkpoint: Path, documents: Documents, at: Sequence[int],
    progress: Progress,
) -> None:  # fmt: skip
    spec = backbone.spec
    stream = documents.stream(codec_of(checkpoint), vocab=spec.vocab, context=spec.max_positions, splits=_SPLITS)
    fitted, number = 0, 0
    for batch in _batches(stream):
        if number % REPORT_EVERY < _TOGETHER:
            progress(f"states of document {number + 1}")
        for document, states in zip(batch, _states(backbone, batch, at), strict=True):
            part = "judge" if document.split == "path" else ("learn", "gate")[fitted % GATE_EVERY == GATE_EVERY - 1]
            fitted += document.split == "fit"
            finished = torch.from_numpy(states[:, -1])
            final = [
                backbone.logits(rows.to(_device(backbone))).argmax(-1).cpu() for rows in finished.split(_LOGIT_ROWS)
            ]
            following = np.append(np.asarray(document.ids[1:], np.int64), -1)
            writers[part].add(states, np.stack([following, torch.cat(final).numpy()], axis=1))
            number += 1


def _states(backbone: Backbone, batch: Sequence[Document], at: Sequence[int]) -> Iterator[np.ndarray]:
    """Each document's states [T, len(at) + 1, D]."""
    ids = torch.zeros(len(batch), max(len(d.ids) for d in batch), dtype=torch.long)
    for row, document in enumerate(batch):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
    found = backbone(ids.to(_device(backbone)), at)
    stacked = torch.stack([*(found.hidden[n] for n in at), found.finished], dim=2).float().cpu()
    for document, states in zip(batch, stacked, strict=True):
        own = states[: len(document.ids)]
        if not torch.isfinite(own).all():
            raise NumericError("the model's hidden states are not finite", mend="check it with `eecompile verify`")
        yield own.numpy()


def _batches(stream: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(stream, _TOGETHER)):
        yield batch


def _device(backbone: Backbone) -> torch.device:
    return backbone.head.weight.device
