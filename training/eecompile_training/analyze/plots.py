"""One picture of an analysis: agreement, information, calibration, where tokens could stop, and what it would gain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES: Final[Mapping[str, str]] = {"lens": "-", "translator": "--", "exit": "o"}
PANELS: Final = (
    ("agreement", "first choice is the full model's"),
    ("kl", "KL from the full model (nats)"),
    ("ece", "calibration error, 15 bins"),
)


def plot_analysis(report: Mapping[str, Any], path: Path) -> None:
    """Write the PNG: a line a checkpoint and kind of probe, over the share of layers run."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flatten()
    for (name, title), axis in zip(PANELS, axes, strict=False):
        _lines(axis, report, name, title)
    _stops(axes[3], report)
    _speedups(axes[4], report)
    axes[0].legend(fontsize="small")
    axes[5].axis("off")
    words = "\n\n".join(f"{Path(f['checkpoint']).name}:\n{f['verdict']}" for f in report["checkpoints"])
    axes[5].text(0, 1, words, va="top", wrap=True, fontsize="small")
    figure.savefig(path, dpi=110)


def _lines(axis: Axes, report: Mapping[str, Any], name: str, title: str) -> None:
    for number, found in enumerate(report["checkpoints"]):
        for kind, probe in found["probes"].items():
            points = [(row["layer"] / found["layers"], row[name]) for row in probe["layers"] if row[name] is not None]
            label = f"{Path(found['checkpoint']).name}, {kind}"
            axis.plot(*zip(*points, strict=True) if points else ([], []), STYLES[kind], color=f"C{number}", label=label)
    axis.set_title(title)
    axis.set_xlabel("share of layers run")


def _stops(axis: Axes, report: Mapping[str, Any]) -> None:
    width = 0.8 / len(report["checkpoints"])
    for number, found in enumerate(report["checkpoints"]):
        probe = found["probes"].get("translator") or found["probes"]["lens"]
        places = [int(n) + number * width for n in probe["first_agreement"]]
        axis.bar(places, list(probe["first_agreement"].values()), width, color=f"C{number}")
    axis.set_title("where a token first agrees (last bar: only at the end)")
    axis.set_xlabel("layers run")


def _speedups(axis: Axes, report: Mapping[str, Any]) -> None:
    width = 0.8 / len(report["checkpoints"])
    for number, found in enumerate(report["checkpoints"]):
        values = [p["speedup"] for p in found["predicted"]]
        axis.bar([i + number * width for i in range(len(values))], values, width, color=f"C{number}")
        axis.set_xticks(range(len(values)), [f"{p['level']:.0%}" for p in found["predicted"]])
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_title(f"predicted speed-up at this agreement, {report['target']}")
