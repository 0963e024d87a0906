"""`analyze`: the measures of METHODS 6 for checkpoints, and whether early exit will pay on a target."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.families import spec_from_config
from eecompile.student.student import Student, open_student, read_config
from eecompile.target import Target, load_target
from eecompile.verify.loops import unroll_model
from eecompile_training.analyze import measures as m
from eecompile_training.analyze.costs import Prices, prices_of_profile, prices_of_target
from eecompile_training.analyze.passages import Passage, continuation, read_passages
from eecompile_training.analyze.plots import plot_analysis
from eecompile_training.analyze.predict import as_json, oracle_speedup, predict, verdict
from eecompile_training.analyze.probes import Kind, Probe, Progress, exit_probes, fit_translators, lenses
from eecompile_training.analyze.subject import Subject, open_model
from eecompile_training.analyze.table import Table, measure

LIMIT: Final = 60  # documents, of which two thirds are held out
MAX_TOKENS: Final = 128
ORACLE_LOSS: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """What to analyse. layers: after which (None: all but the last). fit: also with translators. continued: tokens of
    the model's own continuation to measure instead of the documents' (0: the documents). profile: a bundle whose
    measured times are the target's."""

    data: Path
    target: str = "cpu"
    layers: Sequence[int] | None = None
    fit: bool = False
    continued: int = 0
    limit: int = LIMIT
    max_tokens: int = MAX_TOKENS
    alpha: float = m.ALPHA
    profile: Path | None = None


def analyze_files(
    checkpoints: Sequence[Path], plan: Plan, *, output: Path | None = None, progress: Progress = lambda stage: None
) -> dict[str, Any]:
    """Analyse each checkpoint; the report as plain values. output: a folder for analyze.json and analyze.png.

    Raises UsageError where a checkpoint cannot be loaded or taken apart, layers are not its own, or documents are few.
    """
    target = load_target(plan.target)
    if not 0 <= plan.alpha <= 1:
        raise UsageError(f"alpha {plan.alpha:g} is not from 0 to 1", mend="0.5 weighs both alike")
    found = [_analyze(path, plan, target, progress) for path in checkpoints]
    report = {"data": str(plan.data), "target": target.name, "alpha": plan.alpha, "checkpoints": found}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "analyze.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        plot_analysis(report, output / "analyze.png")
    return report


def _analyze(path: Path, plan: Plan, target: Target, progress: Progress) -> dict[str, Any]:
    progress(f"open {path.name}")
    subject, student, note = _open(path)
    layers = _layers(subject, plan.layers)
    documents, fit, held = read_passages(subject, path, plan.data, limit=plan.limit, max_tokens=plan.max_tokens)
    probes = lenses(subject, layers)
    if plan.fit:
        probes += fit_translators(subject, layers, _enough(fit, plan.data), progress)
    if student is not None:
        probes += exit_probes(subject, student)
    on_text = measure(subject, probes, held, progress)
    table = on_text
    if plan.continued:
        table = measure(subject, probes, _continued(subject, held, plan.continued, progress), progress)
    prices = prices_of_target(subject, target) if plan.profile is None else prices_of_profile(subject, plan.profile)
    described = _described(subject, probes, table, on_text, prices, plan.alpha)
    return {
        "checkpoint": str(path),
        "model_type": str(subject.model.config.model_type),
        "layers": subject.depth,
        "hidden": subject.hidden_size,
        "vocab": subject.vocab,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "builds": note is None,
        "note": note or "",
        "data_sha256": documents.sha256,
        "fit_documents": len(fit) if plan.fit else 0,
        "documents": len(held),
        "tokens": table.tokens,
        "measured_on": f"{plan.continued} tokens of its own greedy continuation" if plan.continued else "the documents",
        "perplexity": m.perplexity(on_text.loss),
        **described,
    }


def _open(path: Path) -> tuple[Subject, Student | None, str | None]:
    """The model, its exits if it is a student, and why `eecompile build` would not take it."""
    model, note = open_model(path), None
    try:
        spec_from_config(read_config(path))
    except UsageError as e:
        note = str(e)
    if not (path / c.EARLY_EXIT).exists():
        return Subject(model, str(path)), None, note
    student = open_student(path)
    if student.cycles:
        what = "a student with cyclic gates runs layers that transformers does not know of"
        raise UsageError(what, where=str(path), mend="measure its bundle: `eecompile bench`")
    unroll_model(model, student)
    return Subject(model, str(path)), student, note


def _layers(subject: Subject, chosen: Sequence[int] | None) -> list[int]:
    layers = sorted(set(range(1, subject.depth) if chosen is None else chosen))
    if outside := [n for n in layers if not 1 <= n < subject.depth]:
        mend = f"layers to stop after are 1 to {subject.depth - 1}"
        raise UsageError(f"layer {outside[0]} is not before the last of {subject.depth}", where=subject.name, mend=mend)
    if not layers:
        raise UsageError("there is no layer to stop after", where=subject.name, mend="a model of two layers has one")
    return layers


def _enough(fit: list[Passage], data: Path) -> list[Passage]:
    if not fit:
        raise UsageError("no document to fit translators on", where=str(data), mend="give more, or leave --fit out")
    return fit


def _continued(subject: Subject, held: Sequence[Passage], most: int, progress: Progress) -> list[Passage]:
    found = []
    for number, passage in enumerate(held):
        progress(f"continue document {number + 1} of {len(held)}")
        found.append(continuation(subject, passage, most))
    kept = [passage for passage in found if passage is not None]
    if len(kept) < 2:
        mend = "give other documents, or leave --continue out"
        raise UsageError("the model ends its answers at once", where=subject.name, mend=mend)
    return kept


def _described(
    subject: Subject, probes: Sequence[Probe], table: Table, on_text: Table, prices: Prices, alpha: float
) -> dict[str, Any]:
    """Measures by kind of probe; what an oracle and the best exit would gain, with the best kind of probe."""
    kinds: list[Kind] = [k for k in ("lens", "translator", "exit") if any(p.kind == k for p in probes)]
    report: dict[str, Any] = {"probes": {kind: _of_kind(kind, probes, table, on_text, subject) for kind in kinds}}
    lens = report["probes"]["lens"]["layers"]
    cosines, layers = [row["cosine"] for row in lens], [row["layer"] for row in lens]
    report["affinity"] = m.affinity([*cosines, 1.0], [*layers, subject.depth], subject.depth, alpha)
    predicted = predict(table, probes, subject.depth, prices)
    oracle, layer = oracle_speedup(table, probes, subject.depth, prices)
    report |= {"costs": prices.basis, "head_in_layers": prices.head(1) / prices.layer(1)}
    report |= {"predicted": as_json(predicted), "oracle_speedup": oracle, "oracle_layer": layer}
    return {**report, "verdict": verdict(predicted, oracle)}


def _of_kind(kind: Kind, probes: Sequence[Probe], table: Table, on_text: Table, subject: Subject) -> dict[str, Any]:
    those = [i for i, probe in enumerate(probes) if probe.kind == kind]
    said, layers = [table.probes[i] for i in those], [probes[i].layer for i in those]
    rows = [{"layer": n, **m.describe(one)} for n, one in zip(layers, said, strict=True)]
    for row, i in zip(rows, those, strict=True):
        row["perplexity"] = m.perplexity(on_text.probes[i].loss)
    if all(row["kl"] is not None for row in rows):
        for row, gained in zip(rows, m.increments([row["kl"] for row in rows]), strict=True):
            row["information"] = gained
    first = m.first_agreement([one.agrees for one in said], layers, subject.depth)
    stops = {str(n): float((first == n).mean()) for n in [*layers, subject.depth]}
    skips = [m.oracle_skip(first, layers[0], subject.depth, loss) for loss in (0.0, ORACLE_LOSS)]
    return {"layers": rows, "first_agreement": stops, "oracle_skip_at_0": skips[0], "oracle_skip": skips[1]}
