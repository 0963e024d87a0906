"""Pictures of a run's metrics, drawn without a display: losses, and what is measured per exit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

Lines = Sequence[Mapping[str, Any]]


def plot_run(metrics: Lines, folder: Path) -> list[Path]:
    """Write losses.png and, for each kind of measure ("<exit>.<measure>"), <measure>.png; returns those written."""
    folder.mkdir(exist_ok=True)
    losses = [line for line in metrics if "loss" in line]
    written = [_plot(losses, sorted(_keys(losses)), "loss", folder / "losses.png")] if losses else []
    measured = [line for line in metrics if "loss" not in line]
    for measure in sorted({key.rpartition(".")[2] for key in _keys(measured)}):
        keys = sorted((key for key in _keys(measured) if key.endswith(f".{measure}")), key=_number)
        written.append(_plot(measured, keys, measure, folder / f"{measure}.png"))
    return written


def _plot(lines: Lines, keys: Sequence[str], label: str, path: Path) -> Path:
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), marker=".", label=key)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight", dpi=110)
    pyplot.close(figure)
    return path


def _keys(lines: Lines) -> set[str]:
    return {key for line in lines for key in line if key not in ("step", "norm")}


def _number(key: str) -> tuple[int, str]:
    digits = "".join(ch for ch in key if ch.isdigit())
    return (int(digits) if digits else 1 << 30, key)
