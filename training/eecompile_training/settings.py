"""The sections that every training command's config shares: data, optimiser, and how a run is paced and kept."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eecompile import contract as c
from eecompile.schema import Name, Probability, Strict

Steps = Annotated[int, Field(ge=0, le=1 << 40)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class DataConfig(Strict):
    """Documents to train on (data.py).

    length: tokens of a row. rows: documents packed one after another into full rows, or one a row, cut off at `length`.
    loss_on: every token, or those of the completion alone where a document has a prompt. held_out: share of documents,
    by their hash, that training never sees; at .5 these are those that `calibrate` tests on. limit: documents of a file
    at most.
    """

    files: Annotated[list[Path], Field(min_length=1, max_length=1024)]
    length: Annotated[int, Field(ge=2, le=c.MAX_CONTEXT)] = 256
    rows: Literal["packed", "documents"] = "packed"
    loss_on: Literal["all", "completion"] = "all"
    held_out: Probability = 0.5
    limit: Count | None = None


class OptimConfig(Strict):
    """AdamW. schedule: of the learning rate after `warmup` steps, down to `floor` times its peak."""

    lr: Positive = 1e-4
    exits_lr: Positive | None = None  # of exits and gates; None: as `lr`
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Steps = 0
    floor: Probability = 0.0
    clip: Positive | None = 1.0


class RunConfig(Strict):
    """What every training command has at the top of its config.

    model: the checkpoint to start from. output: the run's folder. steps: of the optimiser, `batch` rows each, `micro`
    rows at a time through the model (None: all of a process's). precision: bf16 is autocast, weights stay float32.
    recipe: whose defaults the config takes (recipes.py).
    """

    recipe: Name | None = None
    model: Path
    output: Path
    data: DataConfig
    steps: Count = 200
    batch: Annotated[int, Field(ge=1, le=1 << 16)] = 4
    micro: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    optimizer: OptimConfig = OptimConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    log_every: Count = 10
    evaluate_every: Count = 100
    evaluate_rows: Annotated[int, Field(ge=1, le=1 << 20)] = 32
    checkpoint_every: Count = 100
