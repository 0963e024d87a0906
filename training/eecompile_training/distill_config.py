"""The config of `train distill`: student, exits, losses with their weights, curricula, and what is tuned."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.schema import Layer, Name, Probability, Strict
from eecompile_training.exit_config import ExitsConfig
from eecompile_training.settings import Count, Positive, RunConfig, Steps, Weight

Target = Literal["teacher", "self"]


class SameStudent(Strict):
    """The model as it is; with a `teacher` of the same tokenizer, any smaller checkpoint."""

    kind: Literal["same"] = "same"


class LayersStudent(Strict):
    """Some of the model's layers, counted from 1: `count` of them, spread evenly, the last, or every so-many-th; or
    those in `keep`."""

    kind: Literal["layers"]
    map: Literal["uniform", "last", "skip"] = "uniform"
    count: Layer | None = None
    keep: list[Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.count is None) == (self.keep is None):
            raise ValueError("give either count or keep")
        return self


class PrunedStudent(Strict):
    """All layers, narrower: `intermediate` MLP units and `kv_heads` groups of attention heads in each, those that weigh
    most, by their weights or by what they add on `rows` rows of the data."""

    kind: Literal["prune"]
    intermediate: Count | None = None
    kv_heads: Count | None = None
    by: Literal["magnitude", "activation"] = "activation"
    rows: Annotated[int, Field(ge=1, le=4096)] = 8


Student = Annotated[SameStudent | LayersStudent | PrunedStudent, Field(discriminator="kind")]


class LayerMap(Strict):
    """Which layer of the other model a layer is held against. explicit: `pairs`; dynamic: the nearest, in order,
    found again every `every` steps."""

    kind: Literal["uniform", "last", "skip", "explicit", "dynamic"] = "uniform"
    pairs: dict[int, int] = Field(default_factory=dict)
    every: Count = 100

    @model_validator(mode="after")
    def _pairs_where_explicit(self) -> Self:
        if bool(self.pairs) != (self.kind == "explicit"):
            raise ValueError("pairs are for an explicit map, which needs them")
        return self


class HiddenLoss(Strict):
    """Hidden states of the student's `layers` (None: of the exits and the last) against the teacher's, or its own
    deeper ones, detached (`of: self`, where `layers` are those of the exits)."""

    weight: Weight = 1.0
    kind: Literal["cosine", "mse"] = "cosine"
    of: Target = "teacher"
    map: LayerMap = LayerMap()
    layers: list[Layer] | None = None


class AttentionLoss(Strict):
    """Attention maps against the teacher's, squared difference; attention is then eager, and heads are as many."""

    weight: Weight = 1.0
    map: LayerMap = LayerMap()
    layers: list[Layer] | None = None


class ExitLoss(Strict):
    """What the exits learn: ce times next-token cross-entropy plus kl times T^2 forward KL against the teacher's final
    logits or the student's own, detached.

    scale: weights among exits and last layer (losses.exit_weights). layers: trained as exits; "exits": those of the
    student; others, listed or "all", lend norm and head only to training. vocabulary: only so many tokens, the most
    frequent ones, take part in an exit's loss. warmup: of all exits' weight.
    """

    ce: Weight = 0.0
    kl: Weight = 1.0
    of: Target = "self"
    temperature: Positive = 1.0
    scale: Literal["equal", "index", "layerskip", "explicit"] = "equal"
    s: Weight = 0.2
    weights: list[Weight] | None = None
    layers: Literal["exits", "all"] | list[Layer] = "exits"
    vocabulary: Count | None = None
    warmup: Steps = 0
    warmup_shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _weights_where_explicit(self) -> Self:
        if (self.weights is None) == (self.scale == "explicit"):
            raise ValueError("weights are for an explicit scale, which needs them")
        if self.weights is not None and self.layers != "exits":
            raise ValueError("weights are for the student's own exits (layers: exits)")
        return self


class ToFinal(Strict):
    """Draws what each exit gives to the head towards what the last layer gives it, detached."""

    weight: Weight = 1.0
    kind: Literal["cosine", "mse"] = "cosine"


class Anchor(Strict):
    """Holds the last layer where it was on tokens that nothing else asks about, the prompts of `loss_on: completion`:
    kl times forward KL against the teacher plus ce times cross-entropy of the token that follows, at every `every`-th
    place of a row. What was learnt before is forgotten the slower for it."""

    kl: Weight = 1.0
    ce: Weight = 0.0
    every: Count = 4

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not (self.kl or self.ce):
            raise ValueError("an anchor needs a weight: kl, ce or both")
        return self


class Losses(Strict):
    """task: cross-entropy of the last layer; last_kl: its KL against the teacher; gates: learned gates and predictors
    learn whether their exit agrees with the last layer, on detached states."""

    task: Weight = 1.0
    last_kl: Weight = 0.0
    temperature: Positive = 1.0
    exits: ExitLoss | None = ExitLoss()
    hidden: HiddenLoss | None = None
    attention: AttentionLoss | None = None
    to_final: ToFinal | None = None
    anchor: Anchor | None = None
    gates: Weight = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is held against a teacher."""
        of = [part.of for part in (self.exits, self.hidden) if part is not None]
        anchored = self.anchor is not None and bool(self.anchor.kl)
        return anchored or bool(self.last_kl) or self.attention is not None or "teacher" in of


class Curriculum(Strict):
    """Which exits a step trains: all; rotational: every `every`-th, another set each step; gradual: from the deepest
    on, one more after each part of the first half of the run (LayerSkip, section 4.1.2)."""

    kind: Literal["all", "rotational", "gradual"] = "all"
    every: Count = 8


class LayerDropout(Strict):
    """LayerSkip's: row by row a layer is skipped with probability S(t) D(l) p_max. exponential: S grows from 0 to 1."""

    p_max: Probability
    schedule: Literal["one", "exponential"] = "one"


class Lora(Strict):
    """LoRA factors on the projections named `targets` (None: all linear ones of the layers), merged when saved."""

    rank: Annotated[int, Field(ge=1, le=c.MAX_RANK)] = 8
    alpha: Positive = 16.0
    targets: list[Name] | None = None


class Tune(Strict):
    """What is trained. layers: of the backbone only the first so many (None: all). embeddings: those, and a tied head.
    lora: in place of the weights of those layers."""

    backbone: bool = True
    exits: bool = True
    layers: Layer | None = None
    embeddings: bool = True
    lora: Lora | None = None


class SecondStage(Strict):
    """The last `steps` steps, which train something else."""

    steps: Count
    tune: Tune
    losses: Losses


class DistillConfig(RunConfig):
    """The config of `train distill`. teacher: None is the model as it was.

    chunk: rows of logits that are in memory at a time. fsdp: several processes hold shards of model, teacher, gradients
    and moments in place of copies (one process: no effect).
    """

    teacher: Path | None = None
    student: Student = SameStudent()
    exits: ExitsConfig
    losses: Losses = Losses()
    curriculum: Curriculum = Curriculum()
    layer_dropout: LayerDropout | None = None
    tune: Tune = Tune()
    second: SecondStage | None = None
    chunk: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    fsdp: bool = False

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.second is not None and self.second.steps >= self.steps:
            raise ValueError("the second stage is a part of `steps`")
        if self.second is not None and (self.second.tune.lora is None) != (self.tune.lora is None):
            raise ValueError("both stages have LoRA, or neither")
        if self.exits.start == "checkpoint" and self.student.kind != "same":
            raise ValueError("exits of the checkpoint go on only in the same student")
        explicit = [s.exits.weights for s in self.stages if s.exits is not None and s.exits.weights is not None]
        if any(len(weights) != len(self.exits.at) for weights in explicit):
            raise ValueError("there is one weight for each exit")
        return self

    @property
    def tunes(self) -> list[Tune]:
        """What each stage trains."""
        return [self.tune, *([] if self.second is None else [self.second.tune])]

    def stage_of(self, step: int) -> int:
        """Which stage step `step` (from 0) is of."""
        return int(self.second is not None and step >= self.steps - self.second.steps)

    @property
    def stages(self) -> list[Losses]:
        """The losses of each stage."""
        return [self.losses, *([] if self.second is None else [self.second.losses])]
