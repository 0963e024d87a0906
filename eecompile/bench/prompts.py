"""The prompts that a bench runs: a file's, a caller's, or a few of our own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eecompile.errors import UsageError
from eecompile.runtime import request
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.prompts import Prompt, read_prompts

BUILT_IN = (
    "The capital of France is",
    "To make a simple tomato soup, start by",
    "def fibonacci(n):\n    ",
    "A train leaves the station at nine and travels for two hours at 60 kilometres per hour. How far does it go?",
    "Once upon a time, in a small village by the sea, there lived",
)
_RANDOM_PROMPTS, _RANDOM_TOKENS = 4, 16


def prompt_ids(bundle: Bundle, source: Path | Sequence[Prompt] | None) -> list[list[int]]:
    """Token ids of every prompt of `source`.

    A path is a .txt file with a prompt a line, or a .jsonl file of {"prompt"}, {"text"} or {"prompt_ids"}. None: five
    short texts, or random ids where the bundle has no tokenizer. Raises UsageError where there is no usable prompt.
    """
    if source is None:
        source = BUILT_IN if bundle.text else _random_prompts(bundle)
    prompts = read_prompts(source) if isinstance(source, Path) else source
    if not prompts:
        raise UsageError("there is no prompt to run", where=str(source) if isinstance(source, Path) else "")
    return [request.prompt_ids(bundle.text, prompt) for prompt in prompts]


def _random_prompts(bundle: Bundle) -> list[list[int]]:
    model = bundle.manifest.model
    tokens = max(1, min(_RANDOM_TOKENS, model.context // 4))
    drawn = np.random.default_rng(0).integers(0, model.vocab, (_RANDOM_PROMPTS, tokens))
    return [[int(i) for i in row] for row in drawn]
