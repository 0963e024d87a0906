"""Hold the C++ runtime to the Python one: every mode, precision, criterion and rule, on real and on tiny models.

    make cpp
    python tools/cpp_parity.py --smollm2 build/inputs/smollm2 --rampart build/inputs/rampart --out build/parity.json

Each run is one command line, or file of prompts, that `eecompile run` and `eecompile-run` are both given. What they say
has to be equal in all but the times: token ids, text, exit depths, why it stopped, drafts, passes and layer-rows; of
classifiers labels, places, exit depths and costs, and scores to 1e-13. Bundles are made of random exits, thresholds at
which part of the tokens leaves, and are deleted again. Exit status: 1 if anything differs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import onnxruntime

import eecompile
from eecompile.engines.ort import processors

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # tiny models are made as the tests make them

import parity_cases  # noqa: E402
from parity_runs import Run, compare  # noqa: E402


def log(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def run_case(case: parity_cases.Case, command: Path, seed: int, scratch: Path) -> list[dict[str, Any]]:
    """Make a case's bundles, run all its runs in both, and delete them."""
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for run in case.make(Path(folder), seed):
            found.append(record(case, run, command))
    differing = sum(one["difference"] is not None for one in found)
    log(f"{case.name}: {len(found)} runs, {differing} differ, {time.monotonic() - began:.0f} s")
    return found


def record(case: parity_cases.Case, run: Run, command: Path) -> dict[str, Any]:
    """A run as the report has it."""
    found = compare(command, run, processors())
    if found.difference is not None:
        log(f"  {' '.join(run.words)}: {found.difference}")
    return {
        "case": case.name,
        "words": run.words,
        "prompts": run.prompts,
        "batch": run.batch,
        **vars(found),
        "about": run.about,
    }


def totals(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[int]]:
    """[runs, answers, tokens, tokens that left early, differing runs] by dimension and value."""
    found: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        numbers = (1, run["answers"], run["tokens"], run["early"], int(run["difference"] is not None))
        for dimension, values in {"": ["all"], **run["about"]}.items():
            for value in values:
                old = found.setdefault((dimension, value), [0] * 5)
                found[dimension, value] = [a + b for a, b in zip(old, numbers, strict=True)]
    return found


def table(found: Mapping[tuple[str, str], list[int]]) -> str:
    """The totals in Markdown, dimension by dimension."""
    order = list(dict.fromkeys(dimension for dimension, _ in found))
    rows = sorted(found.items(), key=lambda item: (order.index(item[0][0]), -item[1][0]))
    lines = ["| | | runs | answers | tokens | left early | runs that differ |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {d} | {v} | {' | '.join(f'{n:,}' for n in numbers)} |" for (d, v), numbers in rows]
    return "\n".join(lines)


def write(path: Path, runs: list[dict[str, Any]]) -> None:
    """The report so far."""
    versions = {"eecompile": eecompile.__version__, "onnxruntime": onnxruntime.__version__}
    path.write_text(json.dumps({**versions, "runs": runs}) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", type=Path, default=ROOT / "build" / "cpp" / "eecompile-run")
    parser.add_argument("--smollm2", type=Path, help="a decoder's checkpoint: random exits of every kind are added")
    parser.add_argument("--rampart", type=Path, help="an encoder's checkpoint, or student with exits of its own")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle as it is; repeats")
    parser.add_argument("--no-tiny", action="store_true", help="no tiny random models")
    parser.add_argument("--only", default="", help="cases with one of these, apart by commas, in their names")
    parser.add_argument("--runs", type=int, default=200, help="runs to make at least; more rounds have other prompts")
    parser.add_argument("--scratch", type=Path, help="where bundles are made; up to 1 GB at a time")
    parser.add_argument("--out", type=Path, help="every run, as JSON")
    return parser.parse_args()


def main() -> int:
    """Run all, print the table, write the report; returns the exit status."""
    options = arguments()
    if not options.command.exists():
        log(f"error: there is no {options.command}: make cpp")
        return 3
    cases = [] if options.no_tiny else parity_cases.tiny_cases()
    cases += parity_cases.real_cases(options.smollm2, options.rampart, options.bundle)
    cases = [case for case in cases if any(part in case.name for part in options.only.split(","))]
    runs: list[dict[str, Any]] = []
    for seed in count():
        for case in cases:
            runs += run_case(case, options.command, seed, options.scratch)
            if options.out is not None:
                write(options.out, runs)
        if len(runs) >= options.runs or not runs:
            break
    found = totals(runs)
    print(table(found))
    return 0 if runs and found["", "all"][4] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
