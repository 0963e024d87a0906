"""The config of `train exits`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.calibrate.documents import MAX_TOKENS, MIN_TOKENS
from eecompile.schema import Criterion, Layer, Name, Strict
from eecompile_training.settings import Count, OptimConfig, Positive, Steps

Risk = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class ExitDocuments(Strict):
    """Documents as `eecompile exits --fit` takes them, with its splits: exits learn from `fit`, are judged on `path`,
    and are calibrated on `path` and `test`. length: tokens of a document. limit: documents at most, chosen by hash."""

    file: Path
    length: Annotated[int, Field(ge=MIN_TOKENS, le=c.MAX_CONTEXT)] = MAX_TOKENS
    limit: Count | None = None


class CalibrationConfig(Strict):
    """How the trained exits are calibrated. granularity: of a classifier's exits."""

    risk: Risk = 0.05
    error: Risk = 0.05
    granularity: Literal["sentence", "token"] | None = None


class ExitsConfig(Strict):
    """`train exits`: heads, translators and gates on a frozen backbone.

    at: layers after which to exit. adapter: what every exit has before its head (an encoder's have a classifier).
    pooler: give an encoder's exits a pooler of their own too. gates, head, rank, shortlist: as the options of
    `eecompile exits`. steps: of the exits, `batch` rows each, or as many documents for adapter layer. target: the last
    layer's distribution at `temperature`, or the text's own next token. gate_rows: of the documents that gates learn
    from, which exits do not, at most so many rows. cache: what hidden states are kept in; it is
    the run's own unless `cache_folder` names one that runs share.
    """

    recipe: Name | None = None
    model: Path
    output: Path
    data: ExitDocuments
    at: Annotated[list[Layer], Field(min_length=1, max_length=c.MAX_EXITS)]
    adapter: Literal["norm", "affine", "mlp", "layer", "classifier"] | None = None
    pooler: bool = False
    gates: Annotated[list[Criterion], Field(min_length=1, max_length=4)] | None = None
    head: Literal["full", "low_rank", "shortlist"] = "full"
    rank: Annotated[int, Field(ge=1, le=c.MAX_HIDDEN)] = c.LOW_RANK
    shortlist: Annotated[int, Field(ge=c.CANDIDATE_COUNT, le=c.MAX_SHORTLIST)] = c.SHORTLIST
    target: Literal["kl", "ce"] = "kl"
    temperature: Positive = 1.0
    steps: Steps = 1000
    batch: Annotated[int, Field(ge=1, le=1 << 16)] = 256
    optimizer: OptimConfig = OptimConfig(lr=1e-3, weight_decay=0.0)
    gate_rows: Annotated[int, Field(ge=64, le=1 << 24)] = 32768
    calibration: CalibrationConfig = CalibrationConfig()
    cache: Literal["float16", "float32"] = "float16"
    cache_folder: Path | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    log_every: Count = 50
    evaluate_every: Count = 200
    evaluate_rows: Annotated[int, Field(ge=1, le=1 << 30)] = 4096
    checkpoint_every: Count = 200

    @model_validator(mode="after")
    def _layers_are_named_once(self) -> Self:
        if sorted(set(self.at)) != self.at:
            raise ValueError("`at` lists each layer once, shallow first")
        return self
