"""`bench` for classifiers: full and confident mode, with and without compaction, alternating over the same texts.

Ratios are of contenders that take turns in one run, medians over the rounds; everything is included, tokenising too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from eecompile import __version__
from eecompile import contract as c
from eecompile.bench.bench import machine_facts, peak_memory_mb
from eecompile.bench.results import Count, Machine, Positive, Rounds, Share
from eecompile.bench.tables import Table
from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classify import Classification, Classifier, ClassifyStats, TokenLabel
from eecompile.runtime.prompts import read_texts
from eecompile.runtime.texts import TextInput
from eecompile.schema import Name, Precision, Sha256, Strict, Task, Text

Progress = Callable[[str], None]
BATCHES = (1, 32)
BUILT_IN = (
    "The meeting is at nine.", "Please send the report to Anna Kowalski, 14 Mill Lane, before Friday.", "No.",
    "It rained all day, so that the river rose and the lower road was closed until the evening.",
    "My number is 555-0142 and my address is anna@example.org.", "What a wonderful film!",
    "The delivery came late and two of the four boxes were broken.", "He opened the door, looked around and left.",
)  # fmt: skip


class ClassifierResult(Strict):
    """One contender at one batch size, over all texts.

    texts_per_second: of the median round. speedup: over mode full at the same batch size, the median of the rounds'
    ratios. agreement: share of answers (texts, or tokens) with the full model's label; other_agreement: of those whose
    label is not the commonest one, which an exit may never say. mean_off: mean distance of a regression's value.
    layer_rows, frozen_rows: rows through layers a token that were computed, and that only gave keys.
    """

    contender: Name
    batch: Count
    texts_per_second: Positive
    round_seconds: Rounds
    speedup: Positive
    agreement: Share
    other_agreement: Share
    mean_off: Positive
    mean_depth: Positive
    layer_rows: Positive
    frozen_rows: Positive


class ClassifierBench(Strict):
    """The result of `run_classifier_bench`. `refused` says why confident mode is not in it."""

    kind: Literal["classifier-bench"] = "classifier-bench"
    version: Literal[1] = 1
    eecompile: Name
    core: Sha256
    policy: Sha256
    precision: Precision
    task: Task
    layers: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    machine: Machine
    texts: Count
    tokens: Count
    rounds: Count
    granularity: Name
    results: list[ClassifierResult]
    refused: Text
    peak_memory_mb: Positive


@dataclass(frozen=True)
class _Run:
    found: list[Classification]
    stats: ClassifyStats


def run_classifier_bench(
    bundle: Bundle, texts: Path | Sequence[TextInput] | None = None, *, rounds: int = 3,
    progress: Progress = lambda stage: None,
) -> ClassifierBench:  # fmt: skip
    """Measure the bundle on `texts`: a .txt or .jsonl file, texts, or None for a few built-in ones.

    Confident mode is measured as calibrated; where it is refused the result says why. Raises UsageError, NumericError.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing", mend="one round or more")
    given = list(read_texts(texts) if isinstance(texts, Path) else texts or _built_in(bundle))
    contenders, refused = {"full": bundle.classifier(truncate=True)}, ""
    granularity = "sentence"
    try:
        confident = bundle.classifier("confident", truncate=True)
        granularity = "token" if confident.per_token else "sentence"
        contenders["confident"] = confident
        contenders["confident, no compaction"] = bundle.classifier("confident", truncate=True, compaction=False)
    except Uncalibrated as e:
        refused = e.what
    results = measure_classifiers(contenders, given, BATCHES, rounds, progress)
    files = bundle.files
    return ClassifierBench(
        eecompile=__version__,
        core=files.manifest.digest,
        policy=files.policy.digest,
        precision=files.manifest.precision,
        task=files.manifest.task,
        layers=files.manifest.model.layers,
        machine=machine_facts(bundle),
        texts=len(given),
        tokens=sum(len(text.ids) for text in contenders["full"].encoder.encode(given)),
        rounds=rounds,
        granularity=granularity,
        results=results,
        refused=refused,
        peak_memory_mb=peak_memory_mb(),
    )


def measure_classifiers(
    contenders: Mapping[str, Classifier], texts: Sequence[TextInput], batches: Sequence[int], rounds: int,
    progress: Progress = lambda stage: None,
) -> list[ClassifierResult]:  # fmt: skip
    """Every contender at every batch size, taking turns; the first is what the others are compared with."""
    runs: dict[tuple[str, int], list[_Run]] = {(name, batch): [] for batch in batches for name in contenders}
    for number in range(rounds + 1):  # the first warms up
        progress("warm up" if not number else f"round {number} of {rounds}")
        for name, batch in runs:
            runs[name, batch].append(_Run(*contenders[name].run(texts, batch)))
    first = next(iter(contenders))
    return [_result(name, batch, found[1:], runs[first, batch][1:]) for (name, batch), found in runs.items()]


def classifier_tables(result: ClassifierBench) -> list[Table]:
    """The result as a table for a terminal."""
    columns = [
        "contender", "batch", "texts/s", "speed-up", "agreement", "other labels", "mean depth", "layer-rows", "frozen",
    ]  # fmt: skip
    regression = result.task == "regression"
    rows = [
        [
            r.contender, r.batch, f"{r.texts_per_second:.1f}", f"{r.speedup:.2f}x",
            f"off by {r.mean_off:.3g}" if regression else f"{r.agreement:.2%}",
            "-" if regression else f"{r.other_agreement:.2%}", f"{r.mean_depth:.2f}", f"{r.layer_rows:.2f}",
            f"{r.frozen_rows:.2f}",
        ]
        for r in result.results
    ]  # fmt: skip
    if result.refused:
        rows.append(["confident", *["-"] * (len(columns) - 2), f"refused: {result.refused}"])
    run = f"{result.texts} texts of {result.tokens} tokens, {result.rounds} rounds, exits per {result.granularity}"
    title = f"{result.precision}, {result.machine.threads} threads, {run}, peak {result.peak_memory_mb:,.0f} MB"
    return [(title, columns, rows)]


def _built_in(bundle: Bundle) -> list[TextInput]:
    if bundle.text is not None:
        return list(BUILT_IN)
    model = bundle.manifest.model
    return [[(i * 7919 + n) % model.vocab for i in range(min(n, model.context))] for n in range(4, 36, 4)]


def _result(name: str, batch: int, runs: Sequence[_Run], full: Sequence[_Run]) -> ClassifierResult:
    last, seconds = runs[-1], [run.stats.seconds for run in runs]
    same, other, off = _compared(last.found, full[-1].found)
    tokens = max(1, last.stats.tokens)
    return ClassifierResult(
        contender=name,
        batch=batch,
        texts_per_second=last.stats.texts / median(seconds),
        round_seconds=seconds,
        speedup=median(a.stats.seconds / b.stats.seconds for a, b in zip(full, runs, strict=True)),
        agreement=same,
        other_agreement=other,
        mean_off=off,
        mean_depth=last.stats.mean_depth,
        layer_rows=last.stats.layer_rows / tokens,
        frozen_rows=last.stats.frozen_rows / tokens,
    )


def _compared(found: Sequence[Classification], full: Sequence[Classification]) -> tuple[float, float, float]:
    """Agreement, agreement where the full model's label is not its commonest, and the mean distance of first scores."""
    pairs = [(a.label, b.label) for a, b in zip(_answers(found), _answers(full), strict=True)]
    wanted = [b for _, b in pairs]
    common = max(set(wanted), key=wanted.count, default="")
    others = [a == b for a, b in pairs if b != common]
    off = [abs(a.scores[0] - b.scores[0]) for a, b in zip(_answers(found), _answers(full), strict=True)]
    count = max(1, len(pairs))
    return sum(a == b for a, b in pairs) / count, sum(others) / len(others) if others else 1.0, sum(off) / count


def _answers(found: Sequence[Classification]) -> list[Classification | TokenLabel]:
    return list(chain.from_iterable([one] if one.tokens is None else one.tokens for one in found))
