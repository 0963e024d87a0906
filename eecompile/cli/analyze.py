"""`analyze`: what early exit can do for checkpoints, before anything is trained or built."""

from pathlib import Path
from typing import Any

import click

from eecompile.cli.console import print_json, print_table, say, stages, user_faults
from eecompile.cli.options import JSON, ids_from_text
from eecompile.cli.train import training_module

_KINDS = {"lens": "its own norm and head", "translator": "a fitted translator", "exit": "its own exits"}


@click.command()
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Text: .jsonl, .txt or a directory.")
@click.option("--target", default="cpu", show_default=True, help="A name from `eecompile targets`, or a .toml file.")
@click.option("--profile", type=click.Path(path_type=Path), help="A profiled bundle whose times are the target's.")
@click.option("--layers", default="", help="Layers to stop after, as 6,12,18. Default: all.")
@click.option("--fit", is_flag=True, help="Also through translators fitted on a third of the documents.")
@click.option("--continue", "continued", default=0, help="Measure so many tokens of its own greedy continuation.")
@click.option("--limit", default=60, show_default=True, help="Documents, chosen by hash; two thirds are held out.")
@click.option("--max-tokens", default=128, show_default=True, help="Of a document, its prompt not counted.")
@click.option("--alpha", default=0.5, show_default=True, help="Exponent of the exit-affinity score.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder for analyze.json and analyze.png.")
@JSON
@user_faults
def analyze(
    checkpoints: tuple[Path, ...], data: Path, target: str, profile: Path | None, layers: str, fit: bool,
    continued: int, limit: int, max_tokens: int, alpha: float, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what early exit can do for each CKPT: any causal language model that transformers loads, or a student."""
    module = training_module("analyze.analyze")
    chosen = ids_from_text(layers, "--layers") or None
    plan = module.Plan(data, target, chosen, fit, continued, limit, max_tokens, alpha, profile)
    with stages("analyze") as begin:
        report: dict[str, Any] = module.analyze_files(checkpoints, plan, output=output, progress=begin)
    if as_json:
        print_json(report)
        return
    for found in report["checkpoints"]:
        _print_layers(found)
    _print_summary(report)


def _print_layers(found: dict[str, Any]) -> None:
    for kind, probe in found["probes"].items():
        title = f"{found['checkpoint']}, read by {_KINDS[kind]}, on {found['measured_on']}"
        columns = ["layer", "agreement", "information", "ECE", "perplexity", "sure", "agreement where sure", "first"]
        rows = [
            [row["layer"], _share(row["agreement"]), _number(row.get("information")), _number(row["ece"]),
             _number(row["perplexity"]), _share(row["sure"]), _share(row["agreement_where_sure"]),
             _share(probe["first_agreement"][str(row["layer"])])]
            for row in probe["layers"]
        ]  # fmt: skip
        print_table(title, columns, rows)


def _print_summary(report: dict[str, Any]) -> None:
    levels = [f"at {p['level']:.0%}" for p in report["checkpoints"][0]["predicted"]]
    columns = ["checkpoint", "layers", "perplexity", "oracle skips", "affinity", "oracle gate", *levels]
    rows = [
        [found["checkpoint"], found["layers"], _number(found["perplexity"]), _share(_skip(found)),
         _number(found["affinity"]), f"{found['oracle_speedup']:.2f}x",
         *(f"{p['speedup']:.2f}x" for p in found["predicted"])]
        for found in report["checkpoints"]
    ]  # fmt: skip
    print_table(f"predicted speed-up of one exit on {report['target']}, by agreement", columns, rows)
    for found in report["checkpoints"]:
        say(f"{found['checkpoint']}: {found['verdict']} ({found['documents']} documents; costs: {found['costs']})")
        if found["note"]:
            say(f"  `eecompile build` does not take it: {found['note']}")


def _skip(found: dict[str, Any]) -> float:
    """The oracle's skip rate at 5% loss with the best kind of probe."""
    return max(float(probe["oracle_skip"]) for probe in found["probes"].values())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


COMMANDS = (analyze,)
