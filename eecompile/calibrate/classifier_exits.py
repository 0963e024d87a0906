"""`exits` for encoders: a linear classifier for each exit, fitted in closed form, and calibrated.

An exit's classifier is a ridge regression from the hidden state at its layer to the full model's logits (less their
mean, which no probability depends on), on the fit documents. Where the model's own classifier reads the hidden state
too, the penalty pulls towards it: that is the plain exit, which is what is left where documents are few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.calibrate import ERROR, RISK
from eecompile.calibrate.classifier import calibrate_classifier
from eecompile.calibrate.guarantee import Guarantee, check_enough
from eecompile.calibrate.student_output import SOURCE, check_output, copy_checkpoint, replacing_student
from eecompile.calibrate.tables import REPORT_EVERY, Float, Progress
from eecompile.calibrate.text_documents import TextDocuments, load_text_documents
from eecompile.calibrate.text_tables import TEXTS, agreement, trace_documents
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.texts import EncodedText, TextEncoder
from eecompile.runtime.trace_texts import TextTracer
from eecompile.schema import CalibrationResult
from eecompile.student.encoder_student import EncoderStudent, open_encoder
from eecompile.student.exits import EarlyExit, save_exits

RIDGE: Final = 1e-3  # of the mean square of a dimension of the rows
MIN_DOCUMENTS: Final = 10
BuildBundle = Callable[[EncoderStudent, Path], object]
Double = NDArray[np.float64]


@dataclass
class RidgeSums:
    """Sums over rows for linear maps with bias: memory (D + 1) x (D + 1 + C) float64, whatever the number of rows."""

    gram: Double
    cross: Double
    rows: int = 0

    @classmethod
    def of(cls, size: int, outputs: int) -> "RidgeSums":
        """Nothing summed yet."""
        return cls(np.zeros((size + 1, size + 1)), np.zeros((size + 1, outputs)))

    def add(self, rows: Float, targets: Float) -> None:
        """Rows [N, D] and what they should map to [N, C]."""
        wide = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1).astype(np.float64)
        self.gram += wide.T @ wide
        self.cross += wide.T @ targets.astype(np.float64)
        self.rows += len(rows)

    def solve(self, start: Double) -> Double:
        """The map [D + 1, C], its last row the bias, that the penalty pulls towards `start`."""
        size = len(self.gram) - 1
        penalty = RIDGE * float(np.trace(self.gram[:size, :size])) / size * np.eye(size + 1)
        penalty[-1, -1] = 1e-9 * self.rows
        solved: Double = start + np.linalg.solve(self.gram + penalty, self.cross - self.gram @ start)
        return solved


def fit_classifier_exits(
    checkpoint: Path, at: Sequence[int], data: Path, out: Path, *, risk: float = RISK, error: float = ERROR,
    granularity: str | None = None, limit: int | None = None, build_bundle: BuildBundle,
    progress: Progress = lambda stage: None,
) -> dict[str, Any]:  # fmt: skip
    """Write at `out` the encoder with fitted and calibrated exits after the layers `at`; return a summary.

    data: documents, as `load_text_documents` takes them. granularity: what they are calibrated for. build_bundle:
    writes the float32 bundle of a student at a path. What stood at `out`, an older student of this kind, is replaced
    only once all is done. Raises as `calibrate_classifier`, and UsageError for an `out` that holds something else.
    """
    layers = sorted(set(at))
    if not layers:
        raise UsageError("no exits are asked for", mend="name the layers after which to exit: --at 3,4,5")
    student, documents = open_encoder(checkpoint, layers), load_text_documents(data, limit=limit)
    check_output(checkpoint, out)
    counts, limited = documents.counts(), documents.cutoff is not None
    check_enough(counts, Guarantee.of("ltt", risk, error), documents.path, limited=limited)
    if counts["fit"] < MIN_DOCUMENTS:
        raise UsageError(f"fewer than {MIN_DOCUMENTS} documents are for fitting", where=str(data), mend="give more")
    with replacing_student(checkpoint, out) as work:
        progress("build the plain exits")
        build_bundle(student, work / "plain")
        plain = Bundle.open(work / "plain", integrity="size")
        copy_checkpoint(student.path, work / "student")
        specs = [e.model_copy(update={"adapter": "classifier"}) for e in student.exits.schema.exits]
        tensors = _tensors(student, fit_classifiers(plain, documents, plain_start(student), progress))
        save_exits(work / "student", EarlyExit(exits=specs), tensors)
        build_bundle(open_encoder(work / "student"), work / "fitted")
        fitted = Bundle.open(work / "fitted", integrity="size")
        result = calibrate_classifier(
            fitted, data, granularity=granularity, risk=risk, error=error, limit=limit, progress=progress
        )
        before, after = (_agreements(bundle, documents, progress) for bundle in (plain, fitted))
        summary = _summary(layers, before, after, result)
        provenance = _provenance(summary, documents)
        save_exits(work / "student", EarlyExit(exits=specs, calibrations=[result], provenance=provenance), tensors)
    return summary


def fit_classifiers(bundle: Bundle, documents: TextDocuments, start: Double, progress: Progress) -> list[Double]:
    """The map [D + 1, C] of each exit, fitted on the fit documents. start: what the penalty pulls towards."""
    regression = bundle.manifest.task == "regression"
    tracer, encoder = TextTracer(bundle, boundaries=True), TextEncoder(bundle.manifest, bundle.text, truncate=True)
    sums = [RidgeSums.of(bundle.manifest.model.hidden, bundle.manifest.classes) for _ in bundle.manifest.exits]
    waiting: list[EncodedText] = []

    def take(texts: Sequence[EncodedText]) -> None:
        trace = tracer.trace(texts)
        rows = np.flatnonzero(~trace.special)
        firsts = np.cumsum([0, *(len(text.ids) for text in texts[:-1])])
        at = rows if len(trace.special) == len(trace.boundaries[0]) else firsts[rows]
        targets = trace.logits[rows]
        targets = targets if regression else targets - targets.mean(axis=1, keepdims=True)
        for g, total in enumerate(sums):
            total.add(trace.boundaries[g + 1][at], targets)

    for number, document in enumerate(documents.stream(["fit"])):
        if number % REPORT_EVERY == 0:
            progress(f"fit document {number + 1}")
        waiting += encoder.encode(document.texts)
        while len(waiting) >= TEXTS:
            take(waiting[:TEXTS])
            waiting = waiting[TEXTS:]
    if waiting:
        take(waiting)
    return [total.solve(start) for total in sums]


def plain_start(student: EncoderStudent) -> Double:
    """The model's own classifier where it reads the hidden state, its columns less their mean; else nothing."""
    spec = student.spec
    start = np.zeros((spec.hidden + 1, len(spec.labels)))
    if spec.pooler is None:
        start[:-1] = student.store.read(f"{spec.names.classifier}.weight").T
        start[-1] = student.store.read(f"{spec.names.classifier}.bias")
        start -= start.mean(axis=1, keepdims=True)
    return start


def _tensors(student: EncoderStudent, maps: Sequence[Double]) -> dict[str, Float]:
    tensors: dict[str, Float] = {}
    for exit_, found in zip(student.exits.schema.exits, maps, strict=True):
        tensors[f"exit.{exit_.layer}.classifier.weight"] = found[:-1].astype(np.float32)
        tensors[f"exit.{exit_.layer}.classifier.bias"] = found[-1].astype(np.float32)
    return tensors


def _agreements(bundle: Bundle, documents: TextDocuments, progress: Progress) -> list[float]:
    """How often each exit's answer is the full model's on the path documents (a regression: the correlation)."""
    traced = trace_documents(bundle, documents, "path", progress)
    if bundle.manifest.task == "regression":
        return [float(np.corrcoef(said.logits[:, 0], traced.final)[0, 1]) for said in traced.said]
    return [float(agreement(bundle, said.logits, traced.final).mean()) for said in traced.said]


def _summary(
    layers: Sequence[int], plain: Sequence[float], fitted: Sequence[float], result: CalibrationResult
) -> dict[str, Any]:
    chosen = None if result.chosen is None else result.path[result.chosen]
    exits = [
        {
            "layer": layer, "plain_agreement": round(plain[g], 4), "agreement": round(fitted[g], 4),
            "confident": None if chosen is None else chosen.thresholds[g],
        }
        for g, layer in enumerate(layers)
    ]  # fmt: skip
    point = None if chosen is None else chosen.model_dump(exclude={"thresholds"})
    counts = {"test_documents": result.documents, "test_tokens": result.tokens}
    return {"exits": exits, "risk": result.risk, "error": result.error, **counts, "chosen": point}


def _provenance(summary: dict[str, Any], documents: TextDocuments) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": SOURCE, "data": documents.sha256, "documents": documents.count, "ridge": RIDGE,
        "test_documents": summary["test_documents"], "test_tokens": summary["test_tokens"],
    }  # fmt: skip
    for exit_ in summary["exits"]:
        facts |= {f"exit.{exit_['layer']}.{k}": exit_[k] for k in ("plain_agreement", "agreement")}
    return facts
