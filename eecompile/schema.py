"""The types that outside data is validated with, shared by the student's and the bundle's schemas.

Everything read through these comes from disk and nobody vouches for it: every number has a range, every text a
length, unknown keys are errors.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from eecompile import contract as c

Name = Annotated[str, Field(min_length=1, max_length=200)]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # safe as part of a path
Text = Annotated[str, Field(max_length=100_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Layer = Annotated[int, Field(ge=0, le=c.MAX_LAYERS)]
Index = Annotated[int, Field(ge=0, le=c.MAX_LAYERS)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "int8", "w8a8", "fp8", "int4"]
CacheType = Literal["fp32", "fp16", "int8"]
ComputeType = Literal["float32", "float16", "bfloat16"]  # of products and attention in a device's graphs
KVRule = Literal["catch_up", "propagate", "selected", "none"]
Criterion = Literal[
    "learned", "saturation", "router", "predictor", "max_prob", "margin", "entropy", "patience", "delta", "fixed",
    "never",
]  # fmt: skip
Task = Literal["causal-lm", "sequence-classification", "token-classification", "regression"]
TokenId = Annotated[int, Field(ge=0, lt=c.MAX_VOCAB)]
HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
HeadKind = Literal["low_rank", "shortlist"]

Trace = Annotated[str, Field(pattern=r"^[.hax]*$", max_length=1 << 20)]
Dtype = Literal["float32", "float16", "int8", "int64", "bool"]


class Strict(BaseModel):
    """Unknown keys are errors and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Thresholds = dict[Criterion, Finite]  # criterion -> threshold; `fixed` and `never` carry 0


class TensorInfo(Strict):
    """A graph input or output. A dimension is a size or a symbol (contract.py lists the symbols)."""

    name: Name
    dtype: Dtype
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1 << 32)] | Name], Field(max_length=8)]


class GraphInfo(Strict):
    """One ONNX file. `layers` counts the decoder layers in it."""

    path: Name
    inputs: Annotated[list[TensorInfo], Field(max_length=4096)]
    outputs: Annotated[list[TensorInfo], Field(max_length=4096)]
    layers: Layer = 0


class RiskPoint(Strict):
    """One candidate on the path from safe to bold. `thresholds[i]` are exit i's (None: never). `risk` is the mean
    document loss of the union of exits, `p_value` its p-value in Learn-then-Test, `exit_rate` the share of tokens
    that leave early. Of conformal risk control a document's loss is its highest up to this point, without p-value."""

    level: Finite
    thresholds: list[Thresholds | None]
    risk: Probability
    p_value: Probability | None
    exit_rate: Probability
    mean_depth: Finite


class CalibrationResult(Strict):
    """A guarantee over documents, for one precision, cache type, K/V rule and pending cap.

    `chosen` indexes `path`; None means that no point passed. Thresholds at or safer than the chosen ones, for any
    subset of the exits, keep P(risk <= `risk`) >= 1 - `error` (Learn-then-Test), or the risk's expectation over
    calibrations at or under `risk` (conformal risk control, which has no error). `splits`: documents by split, of which
    those of `test` are `documents`. `gates` is the digest of the exits and gate weights
    that were calibrated, `data` that of the documents.

    `traces` are what the exits said of some documents at the chosen thresholds, `draft_traces` at the draft
    thresholds, one text a document: for token t and exit g the letter at t * exits + g is "." (the cheap gate says
    continue), "h" (the head ran and says continue), "a" (fires and agrees with the full model) or "x" (fires and
    differs). Every exit is asked of every token, so that any subset of exits can be simulated. `draft` are those draft
    thresholds by exit, kept here so that a draft that one profile closed can be opened again for another.
    """

    precision: Precision
    kv: KVRule
    pending_cap: Annotated[int, Field(ge=1, le=1024)]
    method: Literal["learn-then-test", "conformal-risk-control"]
    loss: Name
    risk: Probability
    error: Probability | None
    documents: Annotated[int, Field(ge=1, le=1 << 40)]
    tokens: Annotated[int, Field(ge=1, le=1 << 50)]
    data: Sha256
    gates: Sha256
    path: Annotated[list[RiskPoint], Field(max_length=c.MAX_LAYERS)]
    chosen: Index | None
    traces: Annotated[list[Trace], Field(max_length=1024)] = Field(default_factory=list)
    draft_traces: Annotated[list[Trace], Field(max_length=1024)] = Field(default_factory=list)
    draft: Annotated[list[Thresholds | None], Field(max_length=c.MAX_EXITS)] = Field(default_factory=list)
    cache: CacheType = "fp32"
    splits: dict[Literal["fit", "path", "test"], Annotated[int, Field(ge=0, le=1 << 40)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _method_has_its_numbers(self) -> Self:
        tests = self.method == "learn-then-test"
        if tests != (self.error is not None) or any(tests != (point.p_value is not None) for point in self.path):
            raise ValueError("an error and p-values belong to learn-then-test, and to it alone")
        if self.splits and self.splits.get("test") != self.documents:
            raise ValueError(f"{self.documents} documents are tested, and {self.splits.get('test')} are for it")
        return self

    @property
    def promise(self) -> str:
        """The guarantee in words."""
        if self.error is None:
            return f"risk at most {self.risk:.3g} in expectation (a single calibration may exceed it)"
        return f"risk at most {self.risk:.3g} with {1 - self.error:.3g} confidence"
