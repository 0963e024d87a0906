"""A request, or a file of them, in `eecompile run` and `eecompile-run`: the same words, the same JSON but for times."""

import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.cli import main as python_command

TIMES = {"tokens_per_second", "prefill_seconds", "seconds"}
LAST_BITS = 1e-13  # of a classifier's probabilities, which two libraries' exponentials differ in
Prompt = Mapping[str, Any]  # {"text": ..., "pair": ...} or {"prompt_ids": [...]}


@dataclass(frozen=True)
class Run:
    """What both commands are asked to do with the bundle at `bundle`.

    prompts: one, given on the command line, or with `batch` a file of them. words: the options beside. layers: of the
    model. about: what it is counted under in the table, by dimension.
    """

    bundle: Path
    prompts: list[Prompt]
    words: list[str]
    batch: int | None
    layers: int
    about: dict[str, list[str]]


@dataclass(frozen=True)
class Found:
    """Of a run: where the two first differ, or None; answers of the Python command, tokens (or labels) in them, those
    that left before the last layer, and at how many depths."""

    difference: str | None
    answers: int = 0
    tokens: int = 0
    early: int = 0
    depths: int = 0


def compare(command: Path, run: Run, threads: int) -> Found:
    """Run it in both and compare everything that they say."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(run.bundle), *run.words, "--threads", str(threads)]
        if run.batch is None:
            expected, found = _python([*words, *prompt_words(run.prompts[0]), "--json"]), None
            if not isinstance(expected, str):
                found = _cpp(command, [*words, *prompt_words(run.prompts[0]), "--json"])
        else:
            source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            source.write_text("".join(json.dumps(prompt) + "\n" for prompt in run.prompts))
            words += ["--input", str(source), "--output", str(target), "--batch", str(run.batch)]
            expected = _python(words, target)
            found = None if isinstance(expected, str) else _cpp(command, words, target)
    if isinstance(expected, str):
        return Found(f"the Python command failed: {expected}")
    if isinstance(found, str):
        return Found(f"the C++ command failed: {found}")
    depths = [depth for answer in expected for depth in exit_layers(answer)]
    early = sum(depth < run.layers for depth in depths)
    return Found(difference(found, expected), len(expected), len(depths), early, len(set(depths)))


def prompt_words(prompt: Prompt) -> list[str]:
    """A prompt as the commands take it."""
    if "prompt_ids" in prompt:
        return ["--prompt-ids", ",".join(map(str, prompt["prompt_ids"]))]
    return [prompt["text"], *(["--pair", prompt["pair"]] if "pair" in prompt else [])]


def exit_layers(answer: Mapping[str, Any]) -> list[int]:
    """The depth of every token, or label, of an answer."""
    if "exit_layers" in answer:
        return list(answer["exit_layers"])
    return [token["exit_layer"] for token in answer.get("tokens", [answer])]


def difference(found: Any, expected: Any, where: str = "") -> str | None:
    """The first place where two JSON values differ, and how, or None."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            return f"{where}: keys {sorted(found)}, in Python {sorted(expected)}"
        pairs: Iterator[tuple[Any, Any, Any]] = ((k, found[k], expected[k]) for k in expected if k not in TIMES)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(found) != len(expected):
            return f"{where}: {len(found)} values, in Python {len(expected)}"
        pairs = ((i, *pair) for i, pair in enumerate(zip(found, expected, strict=True)))
    else:
        return None if _same(found, expected) else f"{where}: {found!r}, in Python {expected!r}"
    return next((said for key, one, other in pairs if (said := difference(one, other, f"{where}[{key!r}]"))), None)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, int | float):
        return math.isclose(found, expected, rel_tol=LAST_BITS, abs_tol=1e-300)
    return type(found) is type(expected) and bool(found == expected)


def _python(words: list[str], target: Path | None = None) -> list[Any] | str:
    done = CliRunner().invoke(python_command, ["run", *words], catch_exceptions=False)
    return _answers(done.stdout, target) if done.exit_code == 0 else f"{done.exit_code}, {done.stderr.strip()}"


def _cpp(command: Path, words: list[str], target: Path | None = None) -> list[Any] | str:
    done = subprocess.run([command, *words], capture_output=True, text=True, check=False)
    return _answers(done.stdout, target) if done.returncode == 0 else f"{done.returncode}, {done.stderr.strip()}"


def _answers(said: str, target: Path | None) -> list[Any]:
    """The answers on stdout, or in the file, which is gone then."""
    if target is not None:
        said = target.read_text(encoding="utf-8")
        target.unlink()
    return [json.loads(line) for line in said.splitlines() if line.strip()]


def described(manifest: Manifest, mode: str, opened: list[int] | None = None) -> dict[str, list[str]]:
    """What a run in this mode is counted under for what its bundle is; `opened`: the exits that are asked, by number
    (None: all)."""
    exits = [e for i, e in enumerate(manifest.exits) if mode != "full" and (opened is None or i in opened)]
    kinds = {head.name: head.kind.replace("_", "-") for head in manifest.heads}
    layers = ["looped"] if any(step.factors for step in manifest.schedule) else []
    layers += ["repeated by a gate"] if any(step.cycle for step in manifest.schedule) else []
    own: dict[str, set[str]] = {
        "precision": {manifest.precision},
        "mode": {mode},
        "criterion": {gate for e in exits for gate in e.gates},
        "head of exits": {kinds.get(e.head, c.FULL_HEAD) for e in exits},
        "exit": {e.adapter for e in exits},
        "schedule": {e.schedule.kind for e in exits if e.schedule is not None},
        "layers": set(layers),
        "caches": {manifest.cache} if manifest.task == c.CAUSAL_LM else set(),
    }
    return {dimension: sorted(values) for dimension, values in own.items()}
