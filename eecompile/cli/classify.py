"""`run` on a classifier: one text, or a file of them."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eecompile.bundle import disk
from eecompile.cli.console import err, print_json, print_table, say, stages
from eecompile.cli.options import ids_from_text, refuse_given, thresholds_from_options
from eecompile.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from eecompile.runtime import Bundle, Classification, Classifier
    from eecompile.runtime.texts import TextInput

WINDOW = 512  # lines of a file that are read, sorted by length and classified at a time
_GENERATING = (
    "max_new_tokens", "kv", "temperature", "top_k", "top_p", "seed", "sled", "sled_rate", "pending_cap", "raw",
    "stream",
)  # fmt: skip
CLASSIFYING = ("granularity", "truncate", "pair")


def run_classifier(opened: "Bundle", prompt: str | None, options: Mapping[str, Any]) -> None:
    """Classify what the options say and print it, or write it to the output file."""
    from eecompile.runtime.classify import BATCH

    refuse_given(*_GENERATING)
    given = [name for name in ("prompt_ids", "input_") if options[name] is not None] + ["prompt"] * (prompt is not None)
    if len(given) != 1:
        raise UsageError("give one of a text, --prompt-ids and --input FILE.jsonl")
    mode, exits = options["mode"], opened.files.policy.exits
    classifier = opened.classifier(
        mode, granularity=options["granularity"], truncate=options["truncate"], minimum_depth=options["minimum_depth"],
        budget=options["budget"],
        thresholds=thresholds_from_options(options["threshold"], opened.manifest, exits, mode),
    )  # fmt: skip
    if options["input_"] is not None:
        batch = BATCH if options["batch"] is None else options["batch"]
        _run_file(classifier, options["input_"], options["output"], batch)
        return
    if options["output"] is not None:
        raise UsageError("--output goes with --input", mend="a single text is printed")
    if options["prompt_ids"] is not None:
        found, stats = classifier.run([ids_from_text(options["prompt_ids"], "--prompt-ids")])
    else:
        found, stats = classifier.run([prompt or "" if options["pair"] is None else (prompt or "", options["pair"])])
    if options["as_json"]:
        print_json({**as_object(found[0]), "mode": mode, "stats": _stats(stats)})
        return
    _print(opened, found[0])
    err.print(f"{stats.tokens} tokens, {stats.seconds:.3f} s, mean depth {stats.mean_depth:.2f}")


def as_object(found: "Classification") -> dict[str, Any]:
    """A classification as JSON has it."""
    if found.tokens is None:
        return {"label": found.label, "scores": found.scores, "exit_layer": found.exit_layer}
    return {"tokens": [asdict(token) for token in found.tokens], "exit_layer": found.exit_layer}


def _print(opened: "Bundle", found: "Classification") -> None:
    labels = opened.manifest.labels
    if found.tokens is not None:
        rows = [[t.text, t.label, f"{max(t.scores):.4f}", t.exit_layer] for t in found.tokens]
        print_table("", ["token", "label", "score", "exit layer"], rows)
    elif opened.manifest.task == "regression":
        say(f"{found.label} {found.scores[0]:.6g} after {found.exit_layer} layers")
    else:
        say(f"{found.label} after {found.exit_layer} layers")
        for label, score in sorted(zip(labels, found.scores, strict=True), key=lambda pair: -pair[1])[:5]:
            say(f"  {label} {score:.4f}")


def _run_file(classifier: "Classifier", source: Path, target: Path | None, batch: int) -> None:
    """A line of JSON for each of the input's, in its order; the output file appears once it is whole."""
    from eecompile.runtime.prompts import read_texts

    lines, began, done, failed = read_texts(source), time.perf_counter(), 0, 0
    opened = click.open_file("-", "w") if target is None else disk.replacing_file(target)
    with stages("classify") as begin, opened as out:
        while window := list(islice(lines, WINDOW)):
            begin(f"{done} texts done")
            found = _answers(classifier, window, batch)
            out.writelines(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in found)
            done += len(found)
            failed += sum("error" in one for one in found)
    err.print(f"{done} texts in {time.perf_counter() - began:.2f} s")
    if failed:
        where = "stdout" if target is None else str(target)
        raise CheckFailed(f"{failed} of {done} texts failed", where=where, mend='see "error" in their lines')


def _answers(classifier: "Classifier", texts: Sequence["TextInput"], batch: int) -> list[dict[str, Any]]:
    """What is said of each text; of one that cannot be classified, why."""
    try:
        return [as_object(one) for one in classifier.classify(texts, batch)]
    except UsageError as e:
        if len(texts) == 1:
            return [{"error": str(e)}]
        return [answer for text in texts for answer in _answers(classifier, [text], batch)]


def _stats(stats: Any) -> dict[str, Any]:
    return {
        "seconds": stats.seconds, "tokens": stats.tokens, "mean_depth": stats.mean_depth,
        "segment_passes": stats.passes, "layer_rows": stats.layer_rows, "frozen_rows": stats.frozen_rows,
    }  # fmt: skip
