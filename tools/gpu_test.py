"""Run what only a GPU can show: engines built, held against the model and against the CPU, measured; and say on what.

    python tools/gpu_test.py build/inputs/smollm2 --out build/gpu-test

Writes report.json and report.txt into the folder of --out. Exit status: 0 all held, 1 something did not, 3 there is no
GPU here or nothing to run engines with. Each step is a command of eecompile in a process of its own.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from eecompile import __version__
from eecompile.engines.cuda import CudaDevice, Gpu
from eecompile.engines.trt_runtime import load_tensorrt
from eecompile.errors import EECompileError, MissingBackend
from eecompile.target import Target, load_target, target_names
from eecompile.verify.captured import NAME as CAPTURED

PROMPT_IDS = "504,3575,282,4649,314"  # "The capital of France is", for SmolLM2; any ids of a model will do
TOKENS = 64
PACKAGES = ("tensorrt", "cuda-bindings", "onnxruntime", "onnxruntime-gpu", "numpy", "onnx")
Run = Callable[[Sequence[str]], tuple[int, str]]


@dataclass(frozen=True)
class Step:
    """A command that ran: its exit status, seconds, and what it said: an object, or text where it said none."""

    name: str
    command: list[str]
    status: int
    seconds: float
    said: Any


@dataclass(frozen=True)
class Machine:
    """Where it ran. packages: the versions of those that are installed."""

    gpu: Gpu
    tensorrt: str
    eecompile: str
    system: str
    python: str
    packages: dict[str, str]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/gpu-test"), show_default=True)
@click.option("--exits", default="6,12,18", show_default=True)
@click.option("--precision", default="fp16", show_default=True)
@click.option("--context", default=1024, show_default=True)
def main(checkpoint: Path, out: Path, exits: str, precision: str, context: int) -> None:
    """Test eecompile's engines of CHECKPOINT on this machine's GPU."""
    try:
        machine = describe_machine()
        target = target_of(machine)
    except MissingBackend as e:
        click.echo(f"no GPU test: {e}", err=True)
        sys.exit(e.exit_status)
    build = ["--exits", exits, "--precision", precision, "--context", str(context)]
    steps = run_steps(checkpoint, target, out, build, run_command)
    checks = check_steps(steps)
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": asdict(machine), "target": target.name, "checks": checks, "steps": [asdict(s) for s in steps]}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = as_text(machine, target, steps, checks)
    (out / "report.txt").write_text(text, encoding="utf-8")
    click.echo(text)
    sys.exit(0 if all(checks.values()) else 1)


def describe_machine() -> Machine:
    """What is here. Raises MissingBackend where there is no GPU or no TensorRT."""
    gpu, trt = CudaDevice().facts(), load_tensorrt()
    found = {name: _version(name) for name in PACKAGES}
    return Machine(
        gpu, str(trt.__version__), __version__, f"{platform.system()} {platform.machine()}", platform.python_version(),
        {name: version for name, version in found.items() if version},
    )  # fmt: skip


def target_of(machine: Machine) -> Target:
    """The first target that is such a GPU with such a TensorRT. Raises MissingBackend where there is none."""
    here = _numbers(machine.tensorrt)
    for name in target_names():
        target = load_target(name)
        first, below = _numbers(target.tensorrt or "0.0"), _numbers(target.tensorrt_below or "999.0")
        if target.backend == "tensorrt" and machine.gpu.sm in target.sm and first <= here < below:
            return target
    what = f"no target has compute capability {machine.gpu.sm} and TensorRT {machine.tensorrt}"
    raise MissingBackend(what, mend="describe the device in a .toml file and build for that (`eecompile targets`)")


def run_steps(checkpoint: Path, target: Target, out: Path, build: Sequence[str], run: Run) -> list[Step]:
    """Build, make engines, verify, decode on both back ends and in two modes, measure. Where a step fails that the
    others need, those are left out."""
    bundle = str(out / "bundle")
    tokens = ["--prompt-ids", PROMPT_IDS, "--max-new-tokens", str(TOKENS), "--json"]
    needed = [
        ("build", ["build", str(checkpoint), "--target", target.name, *build, "--no-profile", "-o", bundle, "--json"]),
        ("engines", ["engines", bundle, "--json"]),
    ]
    others = [
        ("verify", ["verify", bundle, "--backend", "tensorrt", "--json"]),
        *((f"{mode} on {backend}", ["run", bundle, "--backend", backend, "--mode", mode, *tokens])
          for mode in ("full", "exact") for backend in ("tensorrt", "onnxruntime")),
        ("bench", ["bench", bundle, "--backend", "tensorrt", "--json"]),
        ("bench on onnxruntime", ["bench", bundle, "--backend", "onnxruntime", "--rounds", "2", "--json"]),
    ]  # fmt: skip
    steps: list[Step] = []
    for name, words in needed:
        steps.append(_step(name, words, run))
        if steps[-1].status:
            return steps
    return steps + [_step(name, words, run) for name, words in others]


def check_steps(steps: Sequence[Step]) -> dict[str, bool]:
    """What has to hold: every command ends well, and on the GPU exact mode says what full mode says."""
    by_name = {step.name: step for step in steps}
    ids = {name: step.said["token_ids"] for name, step in by_name.items() if " on tensorrt" in name and not step.status}
    checks = {step.name: step.status == 0 for step in steps}
    checks["every step ran"] = "bench on onnxruntime" in by_name
    if len(ids) == 2:
        checks["exact is full on the GPU"] = ids["exact on tensorrt"] == ids["full on tensorrt"]
    if captured := _captured(steps):
        checks["each pass that repeats is captured"] = captured["figures"]["uncaptured"] == 0
    return checks


def as_text(machine: Machine, target: Target, steps: Sequence[Step], checks: dict[str, bool]) -> str:
    """The report to read."""
    gpu = machine.gpu
    lines = [
        f"{gpu.name}, SM {gpu.sm}, {gpu.memory / 1e9:.1f} GB; driver CUDA {gpu.driver}, runtime {gpu.runtime}",
        f"TensorRT {machine.tensorrt}; eecompile {machine.eecompile}; {machine.system}, Python {machine.python}",
        ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        f"target {target.name}",
        *(f"{'pass' if held else 'FAIL'}  {name}" for name, held in checks.items()),
        *(f"{step.name}: {_first_words(step.said)}" for step in steps if step.status),
        *(f"captured: {captured['detail']}" for captured in [_captured(steps)] if captured),
        *_speeds(steps),
    ]
    return "\n".join(lines) + "\n"


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Exit status of an eecompile command, and its stdout, or where it failed what it said of it."""
    done = subprocess.run([sys.executable, "-m", "eecompile", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout if done.stdout.strip() else done.stderr


def _step(name: str, words: list[str], run: Run) -> Step:
    click.echo(f"{name}: eecompile {' '.join(words)}", err=True)
    begun = time.monotonic()
    status, text = run(words)
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    return Step(name, ["eecompile", *words], status, round(time.monotonic() - begun, 2), said)


def _captured(steps: Sequence[Step]) -> dict[str, Any]:
    """What `verify` said of passes that are no CUDA graphs; nothing where it did not come so far."""
    said = next((step.said for step in steps if step.name == "verify" and isinstance(step.said, dict)), {})
    return next((check for check in said.get("checks", []) if check["name"] == CAPTURED), {})


def _speeds(steps: Sequence[Step]) -> list[str]:
    found = []
    for step in steps:
        if step.name.startswith("bench") and not step.status:
            for mode, result in step.said["modes"].items():
                figures = f"{result['tokens_per_second']:.1f} tokens/s, {result['speedup']:.2f} x full depth"
                found.append(f"{step.name}, {mode}: {figures}, agreement {result['agreement']:.3f}")
    return found


def _first_words(said: Any) -> str:
    return " ".join(str(said).split())[:400]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


if __name__ == "__main__":
    try:
        main()
    except EECompileError as e:
        click.echo(str(e), err=True)
        sys.exit(e.exit_status)
