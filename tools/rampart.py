"""The figures of BENCHMARKS.md on encoders: Rampart on sentences of held-out mails, as curves over thresholds.

    python tools/inputs.py rampart mails
    python tools/rampart.py                  # build/rampart: student, bundle; tables on stdout

Exits are fitted on other mails. One threshold of max_prob for all exits is moved from bold to safe:
exits per token (`propagate`) and per sentence, with and without compaction, one sentence and 32 at a time. Then
the case that compaction is judged by: half of the rows, or sentences, leave after half of the layers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eecompile.bench.classifier import ClassifierResult, measure_classifiers
from eecompile.calibrate.classifier_exits import fit_classifier_exits
from eecompile.calibrate.text_tables import split_trace
from eecompile.errors import EECompileError, UsageError
from eecompile.pipeline import BuildOptions, build, build_plain
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classify import Classifier
from eecompile.runtime.labels import ClassRule
from eecompile.runtime.texts import TextEncoder
from eecompile.runtime.trace_texts import TextTracer
from eecompile.student.encoder_student import open_encoder
from eecompile.target import load_target

EXITS = (2, 3, 4, 5)
HALFWAY = 3
TOKEN_THRESHOLDS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
SENTENCE_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCHES = (1, 32)
KINDS = (("token", True), ("sentence", False))


def log(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def bundle_of(inputs: Path, out: Path, limit: int, precision: str, given: Path | None = None) -> Bundle:
    """Rampart with fitted exits, or the student `given`, made unless it is there."""
    student = given or out / f"student-{limit}"
    bundle = out / f"bundle-{limit if given is None else given.parent.name}-{precision}"
    if not (student / "early_exit.json").exists():
        log(f"fitting exits on {limit} mails")
        data = inputs / "mails" / "calibrate.jsonl"
        fit_classifier_exits(
            inputs / "rampart", EXITS, data, student, risk=0.05, limit=limit, build_bundle=build_plain
        )  # fmt: skip
    if not (bundle / "manifest.json").exists():
        build(open_encoder(student), load_target("cpu"), bundle, BuildOptions(precision=precision))
    return Bundle.open(bundle)


def heldout(inputs: Path, mails: int) -> list[str]:
    """The sentences of the first held-out mails."""
    with open(inputs / "mails" / "heldout.jsonl", encoding="utf-8") as lines:
        return [text for line, _ in zip(lines, range(mails), strict=False) for text in json.loads(line)["texts"]]


def contender(
    bundle: Bundle, thresholds: Sequence[float | None], *, per_token: bool, compaction: bool = True
) -> Classifier:
    """A classifier at these thresholds, calibrated or not."""
    rules = [None if t is None else ClassRule.of({"max_prob": t}) for t in thresholds]
    encoder = TextEncoder(bundle.manifest, bundle.text, truncate=True)
    return Classifier(bundle.manifest, bundle.graphs, encoder, rules, per_token=per_token, compaction=compaction)


def curves(bundle: Bundle, texts: Sequence[str], rounds: int) -> list[ClassifierResult]:
    """Every threshold of both kinds, with and without compaction, in turn with full depth."""
    found = {"full": contender(bundle, [None] * len(EXITS), per_token=False)}
    if calibrated := [c for c in bundle.files.calibrations if c.kv == "none" and c.chosen is not None]:
        chosen = calibrated[0].path[calibrated[0].chosen or 0].thresholds
        thresholds = [None if t is None else t["max_prob"] for t in chosen]
        found[f"sentence, calibrated at {calibrated[0].risk:g}"] = contender(bundle, thresholds, per_token=False)
    for kind, per_token in KINDS:
        for t in TOKEN_THRESHOLDS if per_token else SENTENCE_THRESHOLDS:
            for name, compaction in (("", True), (" uncompacted", False)):
                options = {"per_token": per_token, "compaction": compaction}
                found[f"{kind} {t:g}{name}"] = contender(bundle, [t] * len(EXITS), **options)
    return measure_classifiers(found, texts, BATCHES, rounds, log)


def half(bundle: Bundle, texts: Sequence[str], rounds: int) -> list[ClassifierResult]:
    """Only the exit halfway open, at the threshold that half of the tokens, or of the sentences, pass."""
    tracer, encoder = TextTracer(bundle), TextEncoder(bundle.manifest, bundle.text, truncate=True)
    encoded, place = encoder.encode(texts), EXITS.index(HALFWAY)
    sure = []
    for start in range(0, len(encoded), 32):
        batch = encoded[start : start + 32]
        parts = split_trace(tracer.trace(batch), len(batch))
        sure += [np.asarray(part.exits[place].max_prob) for part in parts if len(part.text)]
    levels = {True: np.median(np.concatenate(sure)), False: np.median([s.min() for s in sure])}
    found = {"full": contender(bundle, [None] * len(EXITS), per_token=False)}
    for kind, per_token in KINDS:
        thresholds = [float(levels[per_token]) if g == place else None for g in range(len(EXITS))]
        found[f"{kind}, half leave"] = contender(bundle, thresholds, per_token=per_token)
        found[f"{kind}, uncompacted"] = contender(bundle, thresholds, per_token=per_token, compaction=False)
    return measure_classifiers(found, texts, BATCHES, rounds, log)


def table(results: Sequence[ClassifierResult]) -> str:
    """The results in Markdown; `saved` is the share of full depth's layer rows that were not computed."""
    columns = ["contender", "batch", "speed-up", "agreement", "other labels", "mean depth", "layer-rows", "frozen"]
    rows = [
        [
            r.contender, str(r.batch), f"{r.speedup:.2f}", f"{r.agreement:.2%}", f"{r.other_agreement:.2%}",
            f"{r.mean_depth:.2f}", f"{r.layer_rows:.2f}", f"{r.frozen_rows:.2f}",
        ]
        for r in results
    ]  # fmt: skip
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def compaction_gain(results: Sequence[ClassifierResult], batch: int) -> dict[str, float]:
    """Time without compaction over time with it, the median of the rounds' ratios, by kind."""
    of = {(r.contender, r.batch): r.round_seconds for r in results}
    return {
        kind: float(np.median(np.array(of[f"{kind}, uncompacted", batch]) / np.array(of[f"{kind}, half leave", batch])))
        for kind, _ in KINDS
    }


def main() -> int:
    """Print the curves and the halfway case; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, default=Path("build/inputs"))
    parser.add_argument("--student", type=Path, help="a run's student/ (`eecompile train exits`), with exits at 2 to 5")
    parser.add_argument("--out", type=Path, default=Path("build/rampart"))
    parser.add_argument("--fit", type=int, default=600, help="mails to fit and calibrate on")
    parser.add_argument("--mails", type=int, default=80, help="held-out mails to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    try:
        bundle = bundle_of(options.inputs, options.out, options.fit, options.precision, options.student)
        texts = heldout(options.inputs, options.mails)
        if not texts:
            raise UsageError("there are no held-out mails", mend="make them: python tools/inputs.py rampart mails")
        print(f"\n{len(texts)} sentences of {options.mails} held-out mails, {options.precision}\n")
        print(table(curves(bundle, texts, options.rounds)), flush=True)
        found = half(bundle, texts, options.rounds)
        print(f"\nHalf leave after {HALFWAY} of 6 layers\n\n{table(found)}\n")
        for batch in BATCHES:
            gains = ", ".join(f"{gain:.2f} per {kind}" for kind, gain in compaction_gain(found, batch).items())
            print(f"time without compaction / with it, batch {batch}: {gains}")
    except (EECompileError, FileNotFoundError) as e:
        log(f"error: {e}")
        return getattr(e, "exit_status", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
