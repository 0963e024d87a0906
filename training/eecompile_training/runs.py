"""A run's folder: what it was asked for, what it ran with, its metrics, and checkpoints that survive a kill.

config.yaml    the resolved config         run.json       seeds, SHA-256 of the data, package versions
metrics.jsonl  a line a report             timings.jsonl  the same steps' seconds and tokens a second
checkpoints/   the last two, each written beside its place and renamed
student/, plots/  what the run is for; student/ appears last, whole
"""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from pydantic import BaseModel

from eecompile.errors import UsageError
from eecompile_training.config import differences, dump_config

PACKAGES: Final = ("eecompile", "torch", "transformers", "accelerate", "peft", "trl", "safetensors", "numpy")
KEPT: Final = 2  # checkpoints


@dataclass(frozen=True)
class Run:
    """The folder of a run. Only a process that `writes` changes anything in it."""

    path: Path
    writes: bool = True

    @property
    def student(self) -> Path:
        """Where the trained student will be."""
        return self.path / "student"

    @property
    def metrics(self) -> Path:
        """JSON lines, each with its step; the same for the same config and data, whether or not a run was broken."""
        return self.path / "metrics.jsonl"

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to the metrics. Nothing that depends on the clock belongs there."""
        self._append(self.metrics, {"step": step, **values})

    def time(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to the timings."""
        self._append(self.path / "timings.jsonl", {"step": step, **values})

    def save(self, step: int, state: Any) -> None:
        """Write the checkpoint after `step` steps, and drop all but the last two."""
        if not self.writes:
            return
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        temporary = folder / "unfinished"
        with open(temporary, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / f"step-{step:08d}.pt")
        for old in self._checkpoints()[:-KEPT]:
            old.unlink()

    def latest(self) -> tuple[int, Any]:
        """The steps done and the state at the last checkpoint; (0, None) without one."""
        found = self._checkpoints()
        if not found:
            return 0, None
        step = int(found[-1].stem.removeprefix("step-"))
        return step, torch.load(found[-1], map_location="cpu", weights_only=True)

    def finish(self, temporary: Path) -> None:
        """Put the finished student in its place, and drop the checkpoints."""
        temporary.rename(self.student)
        for old in self._checkpoints():
            old.unlink()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of the metrics so far."""
        return _lines(self.metrics)

    def rewind(self, step: int) -> None:
        """Forget what was written after `step` steps."""
        if self.writes:
            for path in (self.metrics, self.path / "timings.jsonl"):
                kept = [line for line in _lines(path) if line["step"] <= step]
                _write(path, "".join(json.dumps(line) + "\n" for line in kept))

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if self.writes:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.pt"))


def open_run(
    output: Path, config: BaseModel, data: Mapping[str, str], *, seeds: Mapping[str, int], resume: bool,
    writes: bool = True,
) -> Run:  # fmt: skip
    """Begin a run in `output`, or with `resume` go on with the one that is there.

    data: SHA-256 by file. Raises UsageError where there is a run already, there is none to go on with, it is finished,
    or its config or data are others now.
    """
    run, facts = Run(output, writes), {"seeds": dict(seeds), "data": dict(data)}
    known = output / "config.yaml"
    if resume:
        _check_same(output, config, facts)
        return run
    if writes and known.exists():
        mend = "go on with it (--resume), or give another `output`"
        raise UsageError("there is a run here already", where=str(output), mend=mend)
    if writes:
        output.mkdir(parents=True, exist_ok=True)
        _write(output / "run.json", json.dumps({**facts, "versions": versions()}, indent=2) + "\n")
        _write(known, dump_config(config))
    return run


def versions() -> dict[str, str]:
    """Of Python and the packages that decide what a run computes; without those that are not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_same(output: Path, config: BaseModel, facts: Mapping[str, Any]) -> None:
    try:
        before = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
        said = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UsageError("there is no run to go on with", where=str(output), mend="leave out --resume") from e
    if (output / "student").exists():
        raise UsageError("the run is finished", where=str(output), mend="its result is in student/")
    changed = [*differences(before, config.model_dump(mode="json")), *differences(_facts(said), facts)]
    if changed:
        mend = "give it the config and data that it began with, or another `output`"
        raise UsageError(f"the run began differently: {'; '.join(changed[:5])}", where=str(output), mend=mend)


def _facts(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: said.get(key, {}) for key in ("seeds", "data")}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; a kill may have cut the last one off."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.unfinished")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
