"""Commands that train: each reads a YAML config (docs/TRAINING.md) and leaves a run's folder with a student in it."""

import importlib
from pathlib import Path
from typing import Any

import click

from eecompile.cli.console import print_json, print_table, stages, user_faults
from eecompile.cli.options import JSON
from eecompile.errors import MissingBackend

CONFIG = click.argument("config", type=click.Path(path_type=Path))
RESUME = click.option("--resume", is_flag=True, help="Go on with the run in the config's `output` after a kill.")


@click.group()
def train() -> None:
    """Train students whose early layers are worth stopping at. Needs the extra `train`."""


@train.command()
@CONFIG
@RESUME
@JSON
@user_faults
def distill(config: Path, resume: bool, as_json: bool) -> None:
    """Train a model and its exits together: distillation, LayerSkip and the other recipes."""
    run_training("distill", config, resume, as_json)


@train.command()
@CONFIG
@RESUME
@JSON
@user_faults
def policy(config: Path, resume: bool, as_json: bool) -> None:
    """Tune a bundle's exit gates by GRPO on what its passes cost; `policy BUNDLE set --gates` loads them."""
    run_training("policy", config, resume, as_json)


@train.command()
@CONFIG
@RESUME
@JSON
@user_faults
def exits(config: Path, resume: bool, as_json: bool) -> None:
    """Train exits and gates on a frozen backbone, from cached hidden states, and calibrate them."""
    run_training("exits", config, resume, as_json, module="train_exits")


@train.command()
@CONFIG
@RESUME
@JSON
@user_faults
def recurse(config: Path, resume: bool, as_json: bool) -> None:
    """Tie layers into a block that loops, and train what that lost back; routers choose how often."""
    run_training("recurse", config, resume, as_json)


@train.command()
@CONFIG
@RESUME
@JSON
@user_faults
def lm(config: Path, resume: bool, as_json: bool) -> None:
    """Tune the model itself by GRPO on verifiable rewards, its exits kept in the loss."""
    run_training("lm", config, resume, as_json)


def run_training(verb: str, config: Path, resume: bool, as_json: bool, *, module: str | None = None) -> None:
    """Call `train_file` of eecompile_training's module `module` (None: called as the verb) and print what it returns.

    Of several processes only the first returns something to print.
    """
    trainer = training_module(module or verb)
    with stages(f"train {verb}") as begin:
        summary: dict[str, Any] = trainer.train_file(config, resume=resume, progress=begin)
    if as_json and summary:
        print_json(summary)
    elif summary:
        print_table("", ["", ""], [[name, value] for name, value in summary.items()])


def training_module(name: str) -> Any:
    """The module eecompile_training.<name>; raises MissingBackend where what it needs is not installed."""
    try:
        return importlib.import_module(f"eecompile_training.{name}")
    except ModuleNotFoundError as e:
        missing = (e.name or "").split(".")[0]
        raise MissingBackend(f"training needs {missing}", mend="pip install eecompile[train]") from e


COMMANDS = (train,)
