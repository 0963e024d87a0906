"""Measure the C++ runtime beside what else would decode: the Python runtime, and ONNX Runtime GenAI by its C interface.

    python tools/cpp_bench.py build/bench/int4 --checkpoint build/inputs/smollm2
    python tools/cpp_bench.py build/demo/bundle --prompts PROMPTS.jsonl --modes full,confident,exact

Needs `make cpp`; GenAI is measured where a checkpoint is given (pip install onnxruntime-genai), in full depth. Each
contender is a process of its own, in turns, A and B in one round; ratios are medians of rounds. Prints one JSON object.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from eecompile.bench.peers.genai import convert
from eecompile.bench.prompts import BUILT_IN
from eecompile.bundle.read import read_core
from eecompile.errors import EECompileError, MissingBackend

SOURCE = Path(__file__).with_name("genai_loop.cpp")
MODES = ("full", "confident", "exact")
REPEATS = 3  # of a prompt in one process, after one that does not count


@dataclass(frozen=True)
class Setup:
    """What is measured and with what. commands: the folder of eecompile-run; threads: of every contender."""

    bundle: Path
    commands: Path
    prompts: Path
    tokens: int
    rounds: int
    threads: int

    def library(self) -> Path:
        """The ONNX Runtime that all contenders load: the Python package's. Raises MissingBackend."""
        import onnxruntime

        found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"))
        if not found:
            raise MissingBackend("the onnxruntime package has no shared library", mend="pip install onnxruntime")
        return found[0]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--commands", type=click.Path(path_type=Path), default=Path("build/cpp"), show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="also beside GenAI, which converts it")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/peers"), show_default=True)
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help=".jsonl or .txt; default: five texts")
@click.option("--modes", default="full,exact", show_default=True)
@click.option("--tokens", default=48, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
def main(
    bundle: Path, commands: Path, checkpoint: Path | None, work: Path, prompts: Path | None, modes: str, tokens: int,
    rounds: int, threads: int,
) -> None:  # fmt: skip
    """Measure eecompile-run on BUNDLE."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            setup = Setup(bundle, commands, prompts or built_in(Path(scratch)), tokens, rounds, threads)
            report: dict[str, Any] = {"bundle": str(bundle), "tokens": tokens, "threads": threads}
            report["beside_python"] = [beside_python(setup, mode, Path(scratch)) for mode in modes.split(",")]
            if checkpoint is not None:
                report["beside_genai"] = beside_genai(setup, modes, checkpoint, work, Path(scratch))
            report["start"] = start(setup)
    except EECompileError as e:
        click.echo(f"error {e}", err=True)
        sys.exit(e.exit_status)
    click.echo(json.dumps(report, indent=1))


def built_in(folder: Path) -> Path:
    """A file of the prompts that `eecompile bench` has."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in BUILT_IN), encoding="utf-8")
    return path


# -- Python ----------------------------------------------------------------------------------------------------------


def beside_python(setup: Setup, mode: str, scratch: Path) -> dict[str, Any]:
    """The same file of prompts through both commands in turns: tokens a second, and whether tokens are equal."""
    common = requests(setup, mode)
    cpp = [str(setup.commands / "eecompile-run"), *common, "--onnxruntime", str(setup.library())]
    python = [sys.executable, "-m", "eecompile", "run", *common]
    rounds = []
    for number in range(setup.rounds):
        ours, theirs = (lines_of(command, scratch / "lines.jsonl") for command in (cpp, python))
        equal = [a["token_ids"] == b["token_ids"] for a, b in zip(ours, theirs, strict=True)]
        rounds.append((speed(ours), speed(theirs), sum(equal), len(equal)))
        said(f"{mode}, round {number + 1}: C++ {rounds[-1][0]:.1f}, Python {rounds[-1][1]:.1f} tokens/s")
    depth = statistics.fmean(line["stats"]["mean_depth"] for line in ours)
    return {
        "mode": mode,
        **summary(rounds),
        "equal_outputs": f"{rounds[-1][2]} of {rounds[-1][3]}",
        "mean_depth": depth,
    }


def requests(setup: Setup, mode: str) -> list[str]:
    """The flags of both commands."""
    flags = [str(setup.bundle), "--input", str(setup.prompts), "--mode", mode, "--raw"]
    return [*flags, "--max-new-tokens", str(setup.tokens), "--threads", str(setup.threads)]


def lines_of(command: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """What a command of eecompile wrote, a record a prompt."""
    out.unlink(missing_ok=True)
    output_of([*command, "--output", str(out)])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def speed(lines: Sequence[dict[str, Any]]) -> float:
    """Tokens a second over all prompts, from each one's first new token to its last."""
    decoded = [(len(line["token_ids"]) - 1, line["stats"]["tokens_per_second"]) for line in lines]
    return float(sum(n for n, rate in decoded if rate) / sum(n / rate for n, rate in decoded if rate))


# -- ONNX Runtime GenAI ----------------------------------------------------------------------------------------------


def beside_genai(setup: Setup, modes: str, checkpoint: Path, work: Path, scratch: Path) -> list[dict[str, Any]]:
    """Each mode beside GenAI's own loop, full depth, on the same ids, at the bundle's precision; no early stops."""
    import onnxruntime_genai

    plain = lines_of(
        [str(setup.commands / "eecompile-run"), *requests(setup, "full"), "--onnxruntime", str(setup.library())],
        scratch / "lines.jsonl",
    )
    texts = [prompt["prompt"] for prompt in map(json.loads, setup.prompts.read_text(encoding="utf-8").splitlines())]
    precision = str(read_core(setup.bundle)[0].precision)
    folder = convert(checkpoint, {"int4": "int4", "int8": "int8"}.get(precision, "fp32"), work)
    library = Path(onnxruntime_genai.__file__).parent / "libonnxruntime-genai.so"
    program, environment = compile_loop(scratch), {"LD_LIBRARY_PATH": str(ort_folder(setup, scratch))}
    ends = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
    end = ends[0] if isinstance(ends, list) else ends
    names, rounds = modes.split(","), []
    for number in range(setup.rounds):
        ours: dict[str, list[float]] = {name: [] for name in names}
        theirs, equal = [], 0
        for text, line in zip(texts, plain, strict=True):
            bench = [str(setup.commands / "eecompile-bench"), str(setup.bundle), "--prompt", text, "--raw"]
            bench += ["--modes", modes, "--tokens", str(setup.tokens), "--rounds", str(REPEATS)]
            bench += ["--threads", str(setup.threads), "--integrity", "size", "--onnxruntime", str(setup.library())]
            for found in json.loads(output_of(bench))["modes"]:
                ours[found["mode"]].append(found["tokens_per_second"])
            one = scratch / "prompt.txt"
            one.write_text(" ".join(map(str, line["prompt_ids"])) + "\n")
            loop = [program, library, folder, one, setup.tokens, REPEATS, setup.threads, end]
            made = json.loads(output_of([str(word) for word in loop], environment))
            equal += made["token_ids"][0][: len(line["token_ids"])] == line["token_ids"]
            theirs.append(statistics.median(rates[0] for rates in made["tokens_per_second"]))
        rounds.append([*map(statistics.harmonic_mean, ours.values()), statistics.harmonic_mean(theirs)])
        said(f"round {number + 1}: C++ {modes}, then GenAI: {', '.join(f'{rate:.1f}' for rate in rounds[-1])} tokens/s")
    facts = {
        "version": onnxruntime_genai.__version__,
        "precision": precision,
        "equal_in_full": f"{equal} of {len(plain)}",
    }
    return [{"mode": name, **facts, **summary([(r[i], r[-1]) for r in rounds])} for i, name in enumerate(names)]


def compile_loop(folder: Path) -> Path:
    """GenAI's loop, compiled. Raises MissingBackend where there is no compiler."""
    if (compiler := shutil.which("c++")) is None:
        raise MissingBackend("there is no C++ compiler", mend="install g++")
    program = folder / "genai_loop"
    output_of([compiler, "-std=c++17", "-O2", str(SOURCE), "-o", str(program), "-ldl"])
    return program


def ort_folder(setup: Setup, folder: Path) -> Path:
    """A folder in which the loader finds the same ONNX Runtime for GenAI, under the names that it asks for."""
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(setup.library())
    return folder


# -- start-up --------------------------------------------------------------------------------------------------------


def start(setup: Setup) -> dict[str, Any]:
    """From opening, files hashed, to the first token: medians, in seconds."""
    command = [str(setup.commands / "eecompile-bench"), str(setup.bundle), "--modes", "full", "--tokens", "2"]
    command += ["--rounds", "1", "--threads", str(setup.threads), "--onnxruntime", str(setup.library())]
    found = [json.loads(output_of(command))["start"] for _ in range(setup.rounds)]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


# -- both ------------------------------------------------------------------------------------------------------------


def summary(rounds: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Medians of both speeds and of their ratios, and the rounds' ratios from the lowest to the highest."""
    ratios = sorted(one[0] / one[1] for one in rounds)
    return {
        "tokens_per_second": [statistics.median(one[i] for one in rounds) for i in (0, 1)],
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def said(text: str) -> None:
    """Progress, on stderr."""
    click.echo(text, err=True)


def output_of(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """What a command printed. Raises EECompileError with its last line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EECompileError(f"a command failed: {last[0][:300]}", where=str(command[0]))
    return done.stdout


if __name__ == "__main__":
    main()
