"""Prompts as files and callers give them: text or token ids."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, StrictInt, ValidationError

from eecompile.errors import UsageError
from eecompile.runtime.texts import TextInput

Prompt: TypeAlias = str | Sequence[int]

_FORMAT = 'write {"text": "..."} or {"prompt_ids": [1, 2, 3]} on each line of a .jsonl file'


class _Record(BaseModel):
    """A line of a .jsonl file; other keys are the data set's own."""

    prompt: str | None = None
    text: str | None = None
    pair: str | None = None
    prompt_ids: list[StrictInt] | None = None
    source: Any = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a .txt file, one a line, or of a .jsonl file of {"prompt"}, {"text"}, {"prompt_ids"} or
    {"source"}.

    Blank lines are skipped. Raises UsageError with the line at fault.
    """
    return [prompt for prompt, _ in _stream(path)]


def read_texts(path: Path) -> Iterator[TextInput]:
    """As `read_prompts`, one at a time, for classifiers: a "text" that has a "pair" beside it is a pair."""
    for prompt, pair in _stream(path):
        yield (prompt, pair) if pair is not None and isinstance(prompt, str) else prompt


def _stream(path: Path) -> Iterator[tuple[Prompt, str | None]]:
    """(prompt, the second text of a pair or None) of each line that is not blank."""
    found = False
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found = True
                    yield _record(line, f"{path}:{number}") if path.suffix == ".jsonl" else (line.rstrip("\n"), None)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"the prompts cannot be read: {e}", where=str(path)) from e
    if not found:
        raise UsageError("there is no prompt to run", where=str(path))


def _record(line: str, where: str) -> tuple[Prompt, str | None]:
    try:
        record = _Record.model_validate_json(line)
    except ValidationError as e:
        raise UsageError(f"not a prompt: {e}", where=where, mend=_FORMAT) from e
    if record.prompt_ids is not None:
        return record.prompt_ids, None
    given = (record.prompt, record.text, record.source)  # the source last: it may be a remark on a text's origin
    text = next((text for text in given if isinstance(text, str)), None)
    if text is None:
        raise UsageError("no prompt in this line", where=where, mend=_FORMAT)
    return text, record.pair
