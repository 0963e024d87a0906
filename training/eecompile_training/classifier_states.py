"""The hidden states of an encoder on documents, in two caches: documents that exits learn from, and that judge them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from eecompile.calibrate.documents import Split
from eecompile.calibrate.tables import REPORT_EVERY
from eecompile.calibrate.text_documents import TextDocuments
from eecompile.calibrate.text_tables import TEXTS
from eecompile.errors import NumericError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.texts import EncodedText, TextEncoder
from eecompile.runtime.trace_texts import TextTrace, TextTracer
from eecompile_training.cache import CacheWriter, HiddenCache, StateType, find_cache, writing_caches
from eecompile_training.rows import Progress

PARTS: Final[tuple[Split, ...]] = ("fit", "path")


def cached_texts(
    root: Path, bundle: Bundle, facts: dict[str, Any], documents: TextDocuments, dtype: StateType, progress: Progress
) -> list[HiddenCache]:
    """The caches of the splits fit and path; what is not under `root` is computed by `bundle`, a plain float32 one.

    A row is an answer (a text, or a token with a label): its states at each exit and after the last layer. Its label is
    the full model's answer; of a regression there is none. facts: of the checkpoint.
    """
    layers = [e.layer for e in bundle.manifest.exits]
    own = {**facts, "data": documents.sha256, "cutoff": documents.cutoff, "layers": layers, "dtype": dtype}
    wanted = [{**own, "split": split} for split in PARTS]
    found = [find_cache(root, facts) for facts in wanted]
    if any(cache is None for cache in found):
        with writing_caches(root, wanted, dtype) as writers:
            for writer, split in zip(writers, PARTS, strict=True):
                _fill(writer, bundle, documents, split, progress)
        found = [find_cache(root, facts) for facts in wanted]
    return [cache for cache in found if cache is not None]


def _fill(writer: CacheWriter, bundle: Bundle, documents: TextDocuments, split: Split, progress: Progress) -> None:
    encoder = TextEncoder(bundle.manifest, bundle.text, truncate=True)
    tracer, waiting = TextTracer(bundle, boundaries=True), list[EncodedText]()
    for number, document in enumerate(documents.stream([split])):
        if number % REPORT_EVERY == 0:
            progress(f"states of {split} document {number + 1}")
        waiting += encoder.encode(document.texts)
        while len(waiting) >= TEXTS:
            _add(writer, bundle, waiting[:TEXTS], tracer)
            waiting = waiting[TEXTS:]
    if waiting:
        _add(writer, bundle, waiting, tracer)


def _add(writer: CacheWriter, bundle: Bundle, texts: Sequence[EncodedText], tracer: TextTracer) -> None:
    trace = tracer.trace(texts)
    if not np.isfinite(trace.logits).all():
        mend = "check the checkpoint's weights with `eecompile verify`"
        raise NumericError("the model's logits are not finite", mend=mend)
    rows = np.flatnonzero(~trace.special)
    at = _rows(trace, texts)[rows]
    exits = [trace.boundaries[k + 1][at] for k, step in enumerate(bundle.manifest.schedule) if step.exit is not None]
    writer.add(np.stack([*exits, trace.boundaries[-1][at]], axis=1), trace.logits[rows].argmax(axis=1)[:, None])


def _rows(trace: TextTrace, texts: Sequence[EncodedText]) -> np.ndarray:
    """The row of each of the trace's units: every row, or each text's first."""
    if len(trace.special) == len(trace.boundaries[0]):
        return np.arange(len(trace.special))
    return np.cumsum([0, *(len(text.ids) for text in texts[:-1])])
