"""The config of `train policy`: one YAML file, every key with a default that a short run may keep."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eecompile import contract as c
from eecompile.schema import Criterion, Layer, Probability, Strict
from eecompile_training.settings import Count, Positive, Steps, Weight

Open = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class PromptsConfig(Strict):
    """Documents whose beginnings are prompts; their split is the one that `calibrate` makes, so that what gates are
    tuned on is never tested on.

    prompt_tokens: of a document that does not say itself where its prompt ends. limit: documents of a file at most.
    validation, held_out: how many prompts choose the best gates, and are reported on.
    """

    files: Annotated[list[Path], Field(min_length=1, max_length=1024)]
    prompt_tokens: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)] = 32
    limit: Count | None = None
    validation: Annotated[int, Field(ge=1, le=1 << 20)] = 16
    held_out: Annotated[int, Field(ge=1, le=1 << 20)] = 64


class RolloutConfig(Strict):
    """prompts: of a step. group: rollouts of each. tokens: new ones of each. slots: run side by side, in a bundle built
    for as many."""

    prompts: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    group: Annotated[int, Field(ge=2, le=1 << 12)] = 8
    tokens: Annotated[int, Field(ge=1, le=1 << 16)] = 32
    slots: Annotated[int, Field(ge=1, le=4096)] = 8


class RewardConfig(Strict):
    """R = Q - weight * C / C_full.

    quality: "agreement" (share of tokens that are the full model's on the rollout's own prefix), or "module:function"
    of a task (rewards.py). weight: reached in `ramp` steps from near 0. costs: the profile that the bundle has, or the
    bytes that passes read; auto: the profile where there is one.
    """

    quality: Annotated[str, Field(pattern=r"^(agreement|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$", max_length=200)] = "agreement"
    weight: Weight = 0.5
    ramp: Steps = 10
    costs: Literal["auto", "profile", "bytes"] = "auto"


class ReferenceConfig(Strict):
    """The policy that training is held to: sigmoid((confidence - threshold) / temperature). thresholds: by exit layer;
    those that are missing are the calibrated ones, then the drafts', then one half."""

    temperature: Positive = 0.1
    thresholds: dict[Layer, Open] = Field(default_factory=dict)


class UpdateConfig(Strict):
    """How gates learn from a batch of rollouts. lr: Adam's. clip: of the ratio. beta: weight of the KL to the
    reference. norm: longest gradient. scaling: of advantages."""

    lr: Positive = 3e-4
    clip: Open = 0.2
    beta: Weight = 0.02
    norm: Positive = 1.0
    epochs: Annotated[int, Field(ge=1, le=100)] = 4
    minibatches: Annotated[int, Field(ge=1, le=1 << 12)] = 2
    scaling: Literal["group", "batch", "none"] = "batch"


class GuardsConfig(Strict):
    """Against collapse. minimum_depth: exits before so many layers stay closed. entropy: weight of its bonus. quality:
    below this mean Q for `patience` steps, or without a group that differs for so long, training stops."""

    minimum_depth: Layer = 0
    entropy: Weight = 0.001
    quality: Probability = 0.5
    patience: Annotated[int, Field(ge=1, le=1 << 20)] = 10


class PolicyConfig(Strict):
    """Tuning the learned gates of a bundle.

    bundle: what is played and measured; it is not changed. exits: the layers of those to tune, all that have a learned
    gate by default; others stay closed. kv, pending_cap: as deployed, by default the bundle's. others: thresholds of
    the gates that exits have beside the learned one, wide open by default. start: the bundle's gates moved to the
    reference's thresholds, or as they are. threads: of the runtime (None: all).
    """

    bundle: Path
    output: Path
    data: PromptsConfig
    steps: Count = 100
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    exits: Annotated[list[Layer], Field(max_length=c.MAX_EXITS)] = Field(default_factory=list)
    kv: Literal["catch_up", "propagate"] | None = None
    pending_cap: Annotated[int, Field(ge=1, le=1024)] | None = None
    others: dict[Criterion, Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]] = Field(default_factory=dict)
    start: Literal["reference", "bundle"] = "reference"
    rollouts: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    reference: ReferenceConfig = ReferenceConfig()
    update: UpdateConfig = UpdateConfig()
    guards: GuardsConfig = GuardsConfig()
    evaluate_every: Count = 10
    checkpoint_every: Count = 5
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
