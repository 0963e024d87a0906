"""Prompts as files and callers give them: text or token ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, StrictInt, ValidationError

from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle

Prompt: TypeAlias = str | Sequence[int]

_FORMAT = 'write {"text": "..."} or {"prompt_ids": [1, 2, 3]} on each line of a .jsonl file'


class _Record(BaseModel):
    """A line of a .jsonl file; other keys are the data set's own."""

    prompt: str | None = None
    text: str | None = None
    prompt_ids: list[StrictInt] | None = None
    source: Any = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a .txt file, one a line, or of a .jsonl file of {"prompt"}, {"text"}, {"prompt_ids"} or
    {"source"}.

    Blank lines are skipped. Raises UsageError with the line at fault.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"the prompts cannot be read: {e}", where=str(path)) from e
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError("there is no prompt to run", where=str(path))
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_record(line, f"{path}:{number}") for number, line in numbered]


def encode_prompt(bundle: Bundle, prompt: Prompt) -> list[int]:
    """Token ids of a prompt. Raises UsageError for text where the bundle has no tokenizer."""
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    if bundle.text is None:
        raise UsageError("this bundle has no tokenizer to read text prompts with", mend=_FORMAT)
    return bundle.text.encode(prompt)


def _record(line: str, where: str) -> Prompt:
    try:
        record = _Record.model_validate_json(line)
    except ValidationError as e:
        raise UsageError(f"not a prompt: {e}", where=where, mend=_FORMAT) from e
    if record.prompt_ids is not None:
        return record.prompt_ids
    given = (record.prompt, record.text, record.source)  # the source last: it may be a remark on a text's origin
    text = next((text for text in given if isinstance(text, str)), None)
    if text is None:
        raise UsageError("no prompt in this line", where=where, mend=_FORMAT)
    return text
