"""The prompts that a bench runs: a file's, a caller's, or a few of our own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle

Prompt: TypeAlias = str | Sequence[int]

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
    return [_ids(bundle, prompt) for prompt in prompts]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a .txt or .jsonl file; blank lines are skipped. Raises UsageError with the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"the prompts cannot be read: {e}", where=str(path)) from e
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_record(line, f"{path}:{i}") for i, line in numbered]


def _record(line: str, where: str) -> Prompt:
    mend = 'one object a line: {"prompt": "..."}, {"text": "..."} or {"prompt_ids": [1, 2, 3]}'
    try:
        record = json.loads(line)
    except ValueError as e:
        raise UsageError(f"not JSON: {e}", where=where, mend=mend) from e
    if isinstance(record, dict):
        for key in ("prompt", "text"):
            if isinstance(record.get(key), str):
                return str(record[key])
        ids = record.get("prompt_ids")
        if isinstance(ids, list) and all(type(i) is int for i in ids):
            return ids
    raise UsageError("no prompt in this line", where=where, mend=mend)


def _ids(bundle: Bundle, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    if bundle.text is None:
        mend = 'give token ids: a .jsonl file of {"prompt_ids": [1, 2, 3]}'
        raise UsageError("this bundle has no tokenizer to read text prompts with", mend=mend)
    return bundle.text.encode(prompt)


def _random_prompts(bundle: Bundle) -> list[list[int]]:
    model = bundle.manifest.model
    tokens = max(1, min(_RANDOM_TOKENS, model.context // 4))
    drawn = np.random.default_rng(0).integers(0, model.vocab, (_RANDOM_PROMPTS, tokens))
    return [[int(i) for i in row] for row in drawn]
