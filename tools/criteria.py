"""Fit, calibrate, build and run every exit criterion and kind of head on one model, and print what came of it.

    python tools/criteria.py build/inputs/smollm2 --data build/inputs/texts/gsm8k.jsonl --limit 160 --out build/criteria

Speeds are ratios to full depth in the same alternating rounds; run it on a quiet machine before believing them.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from eecompile.bench.bench import run_bench
from eecompile.bench.prompts import prompt_ids
from eecompile.bench.results import BenchResult
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.plan import ExitPlan
from eecompile.pipeline import BuildOptions, build, build_plain
from eecompile.runtime import Bundle, Sampling
from eecompile.student.student import open_student
from eecompile.target import load_target


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    gates: str
    head: str = "full"
    schedule: str = "none"

    @property
    def name(self) -> str:
        """What to call it, and its folder."""
        return "-".join(
            [self.gates.replace(",", "+"), self.head, *([self.schedule] if self.schedule != "none" else [])]
        )


SETTINGS = [
    Setting("max_prob"), Setting("margin"), Setting("entropy"), Setting("learned,max_prob"),
    Setting("max_prob", "low_rank"), Setting("max_prob", "shortlist"), Setting("learned,max_prob", "shortlist"),
    Setting("patience"), Setting("patience", "shortlist"), Setting("patience,max_prob", "shortlist"),
    Setting("saturation"), Setting("saturation,max_prob", "shortlist"),
    Setting("router"), Setting("router,max_prob", "shortlist"),
    Setting("predictor"), Setting("predictor,max_prob", "shortlist"),
    Setting("max_prob", "shortlist", "decay"), Setting("max_prob", "shortlist", "adaptive"),
]  # fmt: skip
COLUMNS = [
    "gates", "head", "exits allowed", "calibrated exit rate", "agreement", "exit rate", "mean depth", "layer-rows",
    "confident", "ideal", "exact", "drafts right", "exits and heads, layers a token",
]  # fmt: skip


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Documents to fit and calibrate on.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/criteria"), show_default=True)
@click.option("--at", default="18,22,26", show_default=True)
@click.option("--limit", default=160, show_default=True, help="Documents.")
@click.option("--risk", default=0.1, show_default=True)
@click.option("--tokens", default=32, show_default=True, help="To generate for each prompt.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--prompts", type=click.Path(path_type=Path), help="Default: the bench's own.")
@click.option("--only", default="", help="Settings by name, as patience-shortlist,router-full. Default: all.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--keep", is_flag=True, help="Keep every student and bundle.")
def main(
    checkpoint: Path, data: Path, out: Path, at: str, limit: int, risk: float, tokens: int, rounds: int,
    prompts: Path | None, only: str, precision: str, keep: bool,
) -> None:  # fmt: skip
    """Run every setting and print a table in Markdown; OUT/criteria.json has all that was measured."""
    wanted = [s for s in SETTINGS if not only or s.name in only.split(",")]
    layers, rows = [int(n) for n in at.split(",")], []
    measured: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for setting in wanted:
        click.echo(f"{setting.name} ..", err=True)
        folder = out / setting.name
        summary = _fit(checkpoint, layers, data, folder / "student", setting, risk, limit)
        _build(folder, precision)
        bundle = Bundle.open(folder / "bundle", integrity="size")
        result = run_bench(bundle, prompts, max_new_tokens=tokens, rounds=rounds)
        rows.append(_row(setting, summary, result))
        measured[setting.name] = {"fitted": summary, "bench": result.model_dump(mode="json")}
        if setting is wanted[-1]:
            measured["sled"] = _sled(bundle, prompts, tokens)
        (out / "criteria.json").write_text(json.dumps(measured, indent=1))
        if not keep:
            shutil.rmtree(folder)
    for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
        click.echo(f"| {' | '.join(row)} |")
    click.echo(f"\nSLED, with the exits of the last row: {json.dumps(measured['sled'])}")


def _fit(
    checkpoint: Path, layers: Sequence[int], data: Path, out: Path, setting: Setting, risk: float, limit: int
) -> dict[str, Any]:
    plan = ExitPlan.of(setting.gates.split(","), setting.head, schedule=setting.schedule)
    return fit_exits(checkpoint, layers, data, out, risk=risk, limit=limit, plan=plan, build_bundle=build_plain)


def _build(folder: Path, precision: str) -> None:
    """Build with every calibrated exit open, whether or not it pays."""
    student = open_student(folder / "student")
    build(student, load_target("cpu"), folder / "bundle", BuildOptions(precision=precision))


def _row(setting: Setting, summary: dict[str, Any], result: BenchResult) -> list[str]:
    head = setting.head if setting.schedule == "none" else f"{setting.head}, {setting.schedule}"
    exact = result.modes["exact"]
    drafts = f"{exact.drafted - exact.rejected}/{exact.drafted}"
    chosen, confident = summary["chosen"], result.modes.get("confident")
    if chosen is None or confident is None:
        return [setting.gates, head, "none", *["-"] * 7, f"{exact.speedup:.2f}x", drafts, "-"]
    allowed = [str(e["layer"]) for e in summary["exits"] if e["confident"]]
    early = sum(n for layer, n in confident.exit_layers.items() if layer < result.layers)
    return [
        setting.gates, head, " ".join(allowed), f"{chosen['exit_rate']:.1%}", f"{confident.agreement:.1%}",
        f"{early / max(1, sum(confident.exit_layers.values())):.1%}", f"{confident.mean_depth:.1f}",
        f"{confident.layer_rows:.1f}", f"{confident.speedup:.2f}x", f"{confident.ideal_speedup:.2f}x",
        f"{exact.speedup:.2f}x", drafts, f"{_asking(result):.2f}",
    ]  # fmt: skip


def _asking(result: BenchResult) -> float:
    """What asking costs a token in confident mode, in layers: exits, and heads beyond one model's head a token."""
    segments = sum(t.seconds for t in result.graphs if t.graph.startswith("segment_") and t.rows == 1)
    time = result.modes["confident"].time
    asked = sum(seconds for graph, seconds in time.items() if graph.startswith(("exit_", "head")))
    head = next(t.seconds for t in result.graphs if t.graph == "head" and t.rows == 1)
    return (asked - head) / (segments / result.layers)


def _sled(bundle: Bundle, prompts: Path | None, tokens: int) -> dict[str, float]:
    """SLED against mode full: tokens that stay the same, and speed as a ratio."""
    session, same, seconds = bundle.session(), 0, {False: 0.0, True: 0.0}
    asked = prompt_ids(bundle, prompts)
    for ids in asked:
        runs = {}
        for sled in (False, True):
            runs[sled] = session.generate(ids, max_new_tokens=tokens, sampling=Sampling(sled=sled), stop=())
            list(runs[sled])
            seconds[sled] += runs[sled].stats.decode_seconds
        same += sum(a == b for a, b in zip(runs[False].ids, runs[True].ids, strict=True))
    return {"same_tokens": same / (tokens * len(asked)), "speed": seconds[False] / seconds[True]}


if __name__ == "__main__":
    main()
