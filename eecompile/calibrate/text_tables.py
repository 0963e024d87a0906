"""What every exit of a classifier says of the documents, as the tables that thresholds are chosen and tested with.

A row of a table is an answer: a text, or a token where each has a label (special tokens have none). Where a text leaves
as a whole, each of its tokens carries the value of its least sure one: then a token's gate fires exactly where the
whole text leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.documents import Split
from eecompile.calibrate.tables import REPORT_EVERY, ExitTable, Progress, TokenTable
from eecompile.calibrate.text_documents import TextDocuments
from eecompile.errors import NumericError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.labels import Said
from eecompile.runtime.texts import EncodedText, TextEncoder
from eecompile.runtime.trace_texts import TextTrace, TextTracer
from eecompile.schema import Criterion

Float = NDArray[np.float32]
TEXTS = 32  # that are traced together


@dataclass(frozen=True)
class TracedDocuments:
    """Documents of one split: their texts as they are encoded, the document of each, and what was said of them.

    Rows are answers: `text` [A] numbers the texts in order, `final` [A] is the full model's label (a regression: its
    value), `said[g]` what exit g says.
    """

    texts: list[EncodedText]
    document: NDArray[np.int64]
    count: int
    text: NDArray[np.int64]
    final: NDArray[np.float64]
    said: list[Said]

    @property
    def documents(self) -> NDArray[np.int64]:
        """The document of each answer [A], ascending."""
        owner: NDArray[np.int64] = self.document[self.text]
        return owner


def trace_documents(bundle: Bundle, documents: TextDocuments, split: Split, progress: Progress) -> TracedDocuments:
    """Trace one split of `documents`; texts that are too long are cut off. Documents without an answer are left out.

    Raises UsageError for text without a tokenizer, NumericError where the full model computes no finite number.
    """
    encoder, tracer = TextEncoder(bundle.manifest, bundle.text, truncate=True), TextTracer(bundle)
    texts, owners, count = list[EncodedText](), list[int](), 0
    for document in documents.stream([split]):
        found = [text for text in encoder.encode(document.texts) if not all(text.special)]
        texts += found
        owners += [count] * len(found)
        count += bool(found)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    parts: dict[int, TextTrace] = {}
    for start in range(0, len(order), TEXTS):
        if start % (REPORT_EVERY * TEXTS) == 0:
            progress(f"trace {split} text {start + 1} of {len(texts)}")
        chosen = order[start : start + TEXTS]
        parts |= zip(chosen, split_trace(tracer.trace([texts[i] for i in chosen]), len(chosen)), strict=True)
    return _joined(bundle, texts, owners, count, [parts[i] for i in range(len(texts))], documents)


def answer_table(bundle: Bundle, traced: TracedDocuments, *, whole: bool, tolerance: float = 0.0) -> TokenTable:
    """The table of all exits. whole: texts leave as a whole. tolerance: how far a regression's value may be off."""
    before: Float | None = None
    exits = []
    for info, said in zip(bundle.manifest.exits, traced.said, strict=True):
        values, usable = gate_values(said, before)
        if whole:
            values = {gate: _least_bold(gate, v, traced.text) for gate, v in values.items()}
            usable = _all(usable, traced.text)
        kept = {gate: v for gate, v in values.items() if gate in info.gates}
        agrees = agreement(bundle, said.logits, traced.final, tolerance)
        exits.append(ExitTable(info.layer, tuple(info.gates), kept, usable, agrees))
        before = said.logits[:, 0]
    return TokenTable(traced.documents, traced.count, exits, bundle.manifest.model.layers)


def agreement(bundle: Bundle, logits: Float, final: NDArray[np.float64], tolerance: float = 0.0) -> NDArray[np.bool_]:
    """[A]: whether answers with these logits are the full model's."""
    if bundle.manifest.task == "regression":
        return np.asarray(np.abs(logits[:, 0] - final) <= tolerance)
    return np.asarray(logits.argmax(axis=1) == final)


def gate_values(said: Said, before: Float | None) -> tuple[dict[Criterion, Float], NDArray[np.bool_]]:
    """What each gate goes by, by criterion, and where those are numbers."""
    if said.max_prob is None or said.margin is None or said.entropy is None:
        value = said.logits[:, 0]
        delta = np.full_like(value, np.nan) if before is None else np.abs(value - before)
        return {"delta": delta}, np.isfinite(delta)
    values: dict[Criterion, Float] = {"max_prob": said.max_prob, "margin": said.margin, "entropy": said.entropy}
    return values, np.isfinite(said.max_prob) & np.isfinite(said.margin) & np.isfinite(said.entropy)


def split_trace(trace: TextTrace, count: int) -> list[TextTrace]:
    """A batch's trace as one for each of its `count` texts, without special tokens."""
    found = []
    for number in range(count):
        mine = (trace.text == number) & ~trace.special
        exits = [_rows(said, mine) for said in trace.exits]
        found.append(TextTrace(trace.text[mine], trace.special[mine], exits, trace.logits[mine], []))
    return found


def _joined(
    bundle: Bundle, texts: list[EncodedText], owners: list[int], count: int, parts: Sequence[TextTrace],
    documents: TextDocuments,
) -> TracedDocuments:  # fmt: skip
    classes = bundle.manifest.classes
    logits = np.concatenate([part.logits for part in parts]) if parts else np.zeros((0, classes), np.float32)
    if not np.isfinite(logits).all():
        mend = "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"
        raise NumericError("the model's logits are not finite", where=f"a document of {documents.path}", mend=mend)
    regression = bundle.manifest.task == "regression"
    final = logits[:, 0].astype(np.float64) if regression else logits.argmax(axis=1).astype(np.float64)
    said = [_stacked([part.exits[g] for part in parts]) for g in range(len(bundle.manifest.exits))] if parts else []
    text = np.repeat(np.arange(len(parts)), [len(part.logits) for part in parts])
    return TracedDocuments(texts, np.array(owners, np.int64), count, text, final, said)


def _rows(said: Said, chosen: NDArray[np.bool_]) -> Said:
    fields = (said.max_prob, said.margin, said.entropy)
    return Said(said.logits[chosen], said.fires[chosen], *(None if v is None else v[chosen] for v in fields))


def _stacked(parts: Sequence[Said]) -> Said:
    def joined(values: Sequence[Float | None]) -> Float | None:
        present = [v for v in values if v is not None]
        return np.concatenate(present) if present else None

    return Said(
        np.concatenate([p.logits for p in parts]), np.concatenate([p.fires for p in parts]),
        joined([p.max_prob for p in parts]), joined([p.margin for p in parts]), joined([p.entropy for p in parts]),
    )  # fmt: skip


def _least_bold(gate: Criterion, values: Float, text: NDArray[np.int64]) -> Float:
    """Each answer's value replaced by the least bold of its text."""
    starts = np.flatnonzero(np.diff(text, prepend=-1))
    worst = np.maximum if gate in ("entropy", "delta") else np.minimum
    least: Float = worst.reduceat(values, starts)[text]
    return least


def _all(flags: NDArray[np.bool_], text: NDArray[np.int64]) -> NDArray[np.bool_]:
    starts = np.flatnonzero(np.diff(text, prepend=-1))
    every: NDArray[np.bool_] = np.logical_and.reduceat(flags, starts)[text]
    return every
