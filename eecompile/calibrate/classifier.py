"""`calibrate` for classifiers: Learn-then-Test over documents, for exits per text or per token.

Per text nothing that leaves changes another text, so that one pass over the documents says what any thresholds would
do; the loss is that of the union of exits (ltt.py), and every safer threshold is covered.

Per token a row that leaves keeps its hidden state, which its neighbours then attend to (`propagate`): most of what is
lost is lost by tokens that went on among frozen ones. What thresholds do is only known by running them. So the path is
chosen by running candidates over the path documents, and each of its points is run over the test documents, from safe
to bold, until one fails. The guarantee is that of the points themselves (fixed-sequence testing), not of what lies
between them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.calibrate.calibrate import ERROR, RISK, fired, table_losses
from eecompile.calibrate.guarantee import Guarantee, Losses, check_enough
from eecompile.calibrate.ltt import union_losses
from eecompile.calibrate.points import LEVELS, Price, threshold_path
from eecompile.calibrate.tables import Progress, TokenTable
from eecompile.calibrate.text_documents import load_text_documents
from eecompile.calibrate.text_tables import TEXTS, TracedDocuments, agreement, answer_table, trace_documents
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classifier_rules import granularity_of
from eecompile.runtime.classify import Classifier
from eecompile.runtime.labels import ClassRule
from eecompile.runtime.texts import TextEncoder
from eecompile.schema import CalibrationResult, RiskPoint, Thresholds

TOKEN_LEVELS: Final = tuple(float(level) for level in np.geomspace(0.0002, 0.1, 6))  # few, since each is run
TOLERANCE: Final = 0.1  # of the spread of the full model's values, where a regression is given no other
Choice = Sequence[Thresholds | None]


def calibrate_classifier(
    bundle: Bundle, data: Path, *, granularity: str | None = None, risk: float = RISK, error: float = ERROR,
    method: str = "ltt", tolerance: float | None = None, limit: int | None = None,
    progress: Progress = lambda stage: None,
) -> CalibrationResult:  # fmt: skip
    """Calibrate the exits of `bundle` on the path and test splits of the documents at `data`. Nothing is written.

    With probability 1 - `error` over the test documents, an expected document of their kind has a loss of at most
    `risk`: the share of its answers that are not the full model's. method: "crc" has it so in expectation over the test
    documents, whatever `error`. granularity: what leaves alone, "sentence" (texts)
    or "token". tolerance: how far a regression's value may be from the full model's (None: a tenth of the standard
    deviation of the full model's values). limit: documents to take, chosen by hash.
    Raises UsageError where there are no exits or too few documents, NumericError for non-finite logits.
    """
    if not bundle.manifest.exits:
        raise UsageError(
            "the bundle has no exits to calibrate", where=str(bundle.files.path), mend="build with --exits"
        )
    guarantee = Guarantee.of(method, risk, error)
    kind = granularity_of(bundle.files, granularity)
    documents = load_text_documents(data, limit=limit)
    check_enough(documents.counts(), guarantee, documents.path, limited=documents.cutoff is not None)
    path, test = (trace_documents(bundle, documents, split, progress) for split in ("path", "test"))
    if not path.count or test.count < guarantee.needed:
        raise UsageError("too few documents have an answer", where=str(data), mend="give more")
    allowed = _tolerance(bundle, path, tolerance)
    costs = [Price(bundle.manifest.model.layers, 0.0, bundle.manifest.classes)] * len(bundle.manifest.exits)
    if kind == "sentence":
        candidates = threshold_path(answer_table(bundle, path, whole=True, tolerance=allowed), costs, LEVELS)
        tested = answer_table(bundle, test, whole=True, tolerance=allowed)
        points, at = _union_points(tested, candidates, guarantee)
    else:
        points, at = _run_points(bundle, test, _token_path(bundle, path, costs, risk, progress), guarantee, progress)
    return CalibrationResult(
        precision=bundle.manifest.precision,
        kv=c.GRANULARITIES[kind],
        pending_cap=bundle.manifest.pending_cap,
        method=guarantee.name,
        loss=_loss(bundle, kind, allowed),
        risk=risk,
        error=guarantee.error,
        documents=test.count,
        tokens=len(test.text),
        data=documents.sha256,
        gates=gates_digest(bundle.manifest.exits, bundle.files.policy.exits),
        path=points,
        chosen=at,
        splits={**documents.counts(), "test": test.count},
    )


def run_at(bundle: Bundle, test: TracedDocuments, chosen: Choice, *, per_token: bool) -> tuple[np.ndarray, np.ndarray]:
    """The runtime's own answers at thresholds `chosen`: logits [A, C] and exit layers [A] of the documents' answers."""
    rules = [None if thresholds is None else ClassRule.of(thresholds) for thresholds in chosen]
    encoder = TextEncoder(bundle.manifest, bundle.text)
    classifier = Classifier(bundle.manifest, bundle.graphs, encoder, rules, per_token=per_token)
    order = sorted(range(len(test.texts)), key=lambda i: len(test.texts[i].ids))
    starts = np.searchsorted(test.text, np.arange(len(test.texts) + 1))
    logits, depth = np.zeros((len(test.text), bundle.manifest.classes), np.float32), np.zeros(len(test.text), np.int64)
    for first in range(0, len(order), TEXTS):
        batch = [test.texts[i] for i in order[first : first + TEXTS]]
        answers, row = classifier.answer(batch), 0
        for i, text in zip(order[first : first + TEXTS], batch, strict=True):
            rows = np.flatnonzero(~np.array(text.special)) + row if bundle.manifest.task == c.TOKENS else [row]
            logits[starts[i] : starts[i + 1]], depth[starts[i] : starts[i + 1]] = (
                answers.logits[rows],
                answers.depth[rows],
            )
            row += len(text.ids) if bundle.manifest.task == c.TOKENS else 1
    return logits, depth


def _union_points(
    table: TokenTable, candidates: Sequence[tuple[float, Choice]], guarantee: Guarantee
) -> tuple[list[RiskPoint], int | None]:
    """Every candidate, and which is chosen."""
    if not candidates:
        return [], None
    tested, chosen = guarantee.test(np.stack([table_losses(table, t) for _, t in candidates], axis=1))
    layers, points = np.array([e.layer for e in table.exits]), []
    for (level, thresholds), found in zip(candidates, tested, strict=True):
        fires = fired(table, thresholds)
        depth = np.where(fires.any(axis=1), layers[fires.argmax(axis=1)], table.layers)
        points.append(found.point(level, thresholds, depth < table.layers, depth))
    return points, chosen


def _run_points(
    bundle: Bundle, test: TracedDocuments, candidates: Sequence[tuple[float, Choice]], guarantee: Guarantee,
    progress: Progress,
) -> tuple[list[RiskPoint], int | None]:  # fmt: skip
    """Points from safe to bold, the last of them the first that fails, and which is chosen."""
    losses, depths = list[Losses](), list[np.ndarray]()
    for number, (_, chosen) in enumerate(candidates, 1):
        progress(f"run point {number} of at most {len(candidates)}")
        loss, depth = _run_losses(bundle, test, chosen)
        losses.append(loss)
        depths.append(depth)
        if not guarantee.all_pass(losses):
            break
    if not losses:
        return [], None
    tested, at = guarantee.test(np.stack(losses, axis=1))
    layers, ran = bundle.manifest.model.layers, zip(candidates, tested, depths, strict=False)
    return [found.point(*candidate, depth < layers, depth) for candidate, found, depth in ran], at


def _token_path(
    bundle: Bundle, path: TracedDocuments, costs: Sequence[Price], risk: float, progress: Progress
) -> list[tuple[float, Choice]]:
    """Points from safe to bold, by what they lose on the path documents: of the deepest one, two, ... exits open at
    each level those that no other beats in both loss and depth, as far as the loss is near the risk."""
    levels = threshold_path(answer_table(bundle, path, whole=False), costs, TOKEN_LEVELS)
    tried: list[tuple[float, float, Choice]] = []
    for first in reversed(range(len(bundle.manifest.exits))):
        for _, thresholds in levels:
            chosen: Choice = [None] * first + list(thresholds[first:])
            if all(t is None for t in chosen) or any(chosen == other for _, _, other in tried):
                continue
            progress(f"try point {len(tried) + 1} of at most {len(levels) * len(bundle.manifest.exits)}")
            losses, depth = _run_losses(bundle, path, chosen)
            tried.append((float(losses.mean()), float(depth.mean()), chosen))
    found: list[tuple[float, Choice]] = []
    shallowest = float(bundle.manifest.model.layers)
    for loss, mean_depth, chosen in sorted(tried, key=lambda point: point[:2]):
        if mean_depth < shallowest and loss <= 2 * risk:
            shallowest = mean_depth
            found.append((loss, chosen))
    return found


def _run_losses(bundle: Bundle, documents: TracedDocuments, chosen: Choice) -> tuple[Losses, np.ndarray]:
    """The loss of each of the documents that are run with exits per token, and the exit layer of each answer."""
    logits, depth = run_at(bundle, documents, chosen, per_token=True)
    wrong = ~agreement(bundle, logits, documents.final)
    return union_losses(wrong[:, None], documents.documents, documents.count), depth


def _tolerance(bundle: Bundle, path: TracedDocuments, given: float | None) -> float:
    if bundle.manifest.task != "regression":
        if given is not None:
            raise UsageError("a tolerance is for regressions", mend="leave --tolerance out: labels agree or differ")
        return 0.0
    if given is not None and not 0 < given < np.inf:
        raise UsageError(f"a tolerance of {given:g} is not a positive number")
    return TOLERANCE * float(np.std(path.final)) if given is None else given


def _loss(bundle: Bundle, granularity: str, tolerance: float) -> str:
    if bundle.manifest.task == "regression":
        return f"share of a document's texts whose value is further than {tolerance:.6g} from the full model's"
    unit = "tokens" if bundle.manifest.task == c.TOKENS else "texts"
    how = "where any exit fires and disagrees with" if granularity == "sentence" else "that differ from those of"
    return f"share of a document's {unit} {how} the full model; exits per {granularity}"
