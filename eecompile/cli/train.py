"""Commands that train: each reads a YAML config (docs/TRAINING.md) and leaves a run's folder with a student in it."""

import importlib
from pathlib import Path
from typing import Any

import click

from eecompile.cli.console import print_json, print_table, stages, user_faults
from eecompile.cli.options import JSON
from eecompile.errors import MissingBackend

TRAININGS = {  # by verb: the module, and what it does
    "distill": ("distill", "Train a model and its exits together: distillation, LayerSkip and the other recipes."),
    "exits": (
        "train_exits", "Train exits and gates on a frozen backbone, from cached hidden states, and calibrate them.",
    ),
    "recurse": (
        "recurse", "Tie layers into a block that loops, and train what that lost back; routers choose how often.",
    ),
    "policy": (
        "policy", "Tune a bundle's exit gates by GRPO on what its passes cost; `policy BUNDLE set --gates` loads them.",
    ),
    "lm": ("lm", "Tune the model itself by GRPO on verifiable rewards, its exits kept in the loss."),
}  # fmt: skip
CONFIG = click.argument("config", type=click.Path(path_type=Path))
RESUME = click.option("--resume", is_flag=True, help="Go on with the run in the config's `output` after a kill.")


@click.group()
def train() -> None:
    """Train students whose early layers are worth stopping at. Needs the extra `train`."""


def _training(verb: str, module: str, help_: str) -> click.Command:
    """The command that calls `train_file` of eecompile_training's module and prints what it returns.

    Of several processes only the first returns something to print.
    """

    @click.command(verb, help=help_)
    @CONFIG
    @RESUME
    @JSON
    @user_faults
    def command(config: Path, resume: bool, as_json: bool) -> None:
        trainer = training_module(module)
        with stages(f"train {verb}") as begin:
            summary: dict[str, Any] = trainer.train_file(config, resume=resume, progress=begin)
        if as_json and summary:
            print_json(summary)
        elif summary:
            print_table("", ["", ""], [[name, value] for name, value in summary.items()])

    return command


def training_module(name: str) -> Any:
    """The module eecompile_training.<name>; raises MissingBackend where what it needs is not installed."""
    try:
        return importlib.import_module(f"eecompile_training.{name}")
    except ModuleNotFoundError as e:
        missing = (e.name or "").split(".")[0]
        raise MissingBackend(f"training needs {missing}", mend="pip install eecompile[train]") from e


@train.command("judge")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT...")
@click.option("--data", multiple=True, required=True, metavar="[NAME=]FILE", help="Documents that it has not seen.")
@click.option("--documents", type=click.IntRange(1), default=64, show_default=True, help="Of each file at most.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Of a continuation at most.")
@JSON
@user_faults
def judge(checkpoints: tuple[Path, ...], data: tuple[str, ...], documents: int, tokens: int, as_json: bool) -> None:
    """Say what the exits of each CKPT are worth on documents: agreement, calibration error, perplexity."""
    module = training_module("judge")
    files = dict(_named(word) for word in data)
    found = {}
    with stages("train judge") as begin:
        for path in checkpoints:
            found[str(path)] = module.judge(path, files, documents=documents, tokens=tokens, progress=begin)
    if as_json:
        print_json(found)
        return
    columns = ("agreement", "ece", "perplexity")
    rows = [
        [path, name, place, *(f"{figures[c]:.4f}" if c in figures else "" for c in columns)]
        for path, slices in found.items()
        for name, slice_ in slices.items()
        for place, figures in slice_["exits"].items()
    ]
    print_table("", ["checkpoint", "documents", "exit", *columns], rows)


def _named(word: str) -> tuple[str, Path]:
    name, _, file = word.rpartition("=")
    return name or Path(file).stem, Path(file)


for _verb, (_module, _help) in TRAININGS.items():
    train.add_command(_training(_verb, _module, _help))
COMMANDS = (train,)
