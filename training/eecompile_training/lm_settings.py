"""The config of `train lm`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eecompile import contract as c
from eecompile.schema import Name, Probability, Strict
from eecompile_training.settings import Count, OptimConfig, Positive, Weight


class Prompts(Strict):
    """Lines of .jsonl files with "prompt" and "completion" (or "source" and "target"), the completion being the answer
    that a reward may ask for, or "text", a prompt without one. held_out: as DataConfig's."""

    files: Annotated[list[Path], Field(min_length=1, max_length=1024)]
    held_out: Probability = 0.5
    limit: Count | None = None


class ExitTerm(Strict):
    """What keeps the exits: `weight` times the mean over exits and sampled tokens of KL from the last layer, detached,
    or of cross-entropy of the sampled token."""

    kind: Literal["kl", "ce"] = "kl"
    weight: Weight = 0.1
    temperature: Positive = 1.0


class LmConfig(Strict):
    """`train lm`: GRPO of a student's model on verifiable rewards.

    rewards: built in, or "module:function"; they are added up. generations: answers to a prompt. A step takes `batch`
    answers, a multiple of `generations`, of at most `length` tokens. beta: of the KL to the model as it was. scaling:
    of advantages (trl's scale_rewards).
    """

    recipe: Name | None = None
    model: Path
    output: Path
    data: Prompts
    rewards: Annotated[list[Name], Field(min_length=1, max_length=16)]
    generations: Annotated[int, Field(ge=2, le=1024)] = 8
    batch: Annotated[int, Field(ge=2, le=1 << 16)] = 8
    length: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)] = 128
    temperature: Positive = 1.0
    beta: Weight = 0.0
    clip_ratio: Positive = 0.2
    scaling: Literal["group", "batch", "none"] = "group"
    exits: ExitTerm = ExitTerm()
    steps: Count = 100
    optimizer: OptimConfig = OptimConfig(lr=1e-6)
    gradient_checkpointing: bool = False
    chunk: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    log_every: Count = 1
    checkpoint_every: Count = 50
