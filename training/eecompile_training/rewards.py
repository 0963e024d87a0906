"""What an answer is worth, where that can be checked: functions (prompts, completions, answer, **columns) -> floats."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from eecompile.errors import UsageError

Reward = Callable[..., list[float]]


def json_valid(completions: Sequence[str], **others: Any) -> list[float]:
    """One for a completion that is a JSON object or array and nothing else, zero for any other."""
    return [float(_is_json(text)) for text in completions]


def exact_match(completions: Sequence[str], answer: Sequence[str], **others: Any) -> list[float]:
    """One for a completion that is the answer, white space around both aside; zero for any other."""
    return [float(text.strip() == wanted.strip()) for text, wanted in zip(completions, answer, strict=True)]


BUILT_IN: Final[Mapping[str, Reward]] = {"json_valid": json_valid, "exact_match": exact_match}


def load_reward(name: str) -> Reward:
    """A built-in reward, or the function that "module:function" names. Raises UsageError where there is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    mend = f'one of {", ".join(BUILT_IN)}, or "module:function" of a module that Python finds'
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise UsageError(f"there is no reward {name!r} ({e})", where="rewards", mend=mend) from e
    if not callable(found):
        raise UsageError(f"the reward {name!r} is no function", where="rewards", mend=mend)
    reward: Reward = found
    return reward


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
