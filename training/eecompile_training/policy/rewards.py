"""Q: what a rollout is worth. By default the share of its tokens that the full model would have emitted there; or what
a task's own function says of the whole text."""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.source import sequence
from eecompile.runtime.trace import Tracer
from eecompile_training.policy.prompts import Prompt
from eecompile_training.policy.records import Double, Rollout


@dataclass(frozen=True)
class Answer:
    """What a task's function judges: token ids, their text ("" without a tokenizer), and the document's target."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    target: str | None


TaskReward = Callable[[Answer], float]
Quality = Callable[[Prompt, Rollout], Double]  # what each of the T tokens adds to Q


class Agreement:
    """1/T for each token that is the full model's arg-max on the rollout's own prefix, from one teacher-forced pass at
    full depth. Not thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        self._tracer, self._manifest = Tracer(bundle, exits=False), bundle.manifest

    def __call__(self, prompt: Prompt, rollout: Rollout) -> Double:
        """See Quality."""
        count = len(rollout.walks)
        if not count:
            return np.zeros(0)
        ids, source = sequence(self._manifest, prompt.ids, rollout.ids[:-1])
        wanted = self._tracer.trace(ids, source).final.token[-count:]
        return np.asarray((wanted == np.array(rollout.ids[1:])) / count, np.float64)


class Task:
    """A task's reward, all of it at the last token."""

    def __init__(self, bundle: Bundle, reward: TaskReward, name: str) -> None:
        self._text, self._reward, self._name = bundle.text, reward, name

    def __call__(self, prompt: Prompt, rollout: Rollout) -> Double:
        """See Quality. Raises UsageError where the function gives no number from 0 to 1."""
        quality = np.zeros(len(rollout.walks))
        text = "" if self._text is None else self._text.decode(rollout.ids)
        value = self._reward(Answer(prompt.ids, rollout.ids, text, prompt.target))
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            raise UsageError(f"the reward {value!r} is not a number from 0 to 1", where=self._name)
        quality[-1:] = value
        return quality


def quality_of(name: str, bundle: Bundle) -> Quality:
    """What the config calls `name`: "agreement", or "module:function". Raises UsageError where there is no such."""
    if name == "agreement":
        return Agreement(bundle)
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        mend = "name a function that Python can import from here, or `agreement`"
        raise UsageError(f"there is no reward {name} ({e})", where="reward.quality", mend=mend) from e
    return Task(bundle, found, name)


def exact_json(answer: Answer) -> float:
    """1 where the text begins with the JSON value that the target is, whatever the spacing and the order of keys."""
    if answer.target is None:
        return 0.0
    try:
        said: tuple[Any, int] = json.JSONDecoder().raw_decode(answer.text.lstrip())
        return float(said[0] == json.loads(answer.target))
    except ValueError:
        return 0.0
