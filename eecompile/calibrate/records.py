"""The files that documents stand in: .jsonl, .txt, or a directory of .txt, read as a stream of records."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from eecompile.errors import UsageError

_CHARACTERS: Final = 1 << 20  # of a document; the rest is not read
SEPARATE: Final = "put a form feed or a line of only --- between documents, or give a .jsonl file or a directory"
FORMS: Final = (
    'give a .jsonl file ({"text": ...}, {"prompt": ..., "completion": ...} or {"source": ..., "target": ...} a line), '
    "a directory of .txt files, or a .txt file"
)


class _Line(BaseModel):
    """A line of a .jsonl file. Other members are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str | None = None
    ids: list[int] | None = None
    prompt_ids: list[int] | None = None
    prompt: Any = None  # of these, what is of another kind is ignored as well
    completion: Any = None

    @property
    def whole(self) -> str | None:
        """Its text: a prompt and its completion are one document."""
        pair = isinstance(self.prompt, str) and isinstance(self.completion, str)
        return f"{self.prompt}{self.completion}" if self.text is None and pair else self.text


class _Pair(BaseModel):
    """A line for an encoder-decoder: texts or token ids. Without a target the model's own is taken."""

    model_config = ConfigDict(extra="ignore", strict=True)

    source: str | list[int]
    target: str | list[int] | None = None


@dataclass(frozen=True)
class Record:
    """A document as it stands in its file: text, or token ids; `target` belongs to a source.

    For training: `prompt` is what the content begins with and need not be learnt.
    """

    where: str
    content: str | list[int]
    target: str | list[int] | None = None
    prompt: str | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the content, without its target: a source is in one split, whatever is said to it."""
        kind = "text" if isinstance(self.content, str) else "ids"
        return hashlib.sha256(json.dumps([kind, self.content]).encode()).digest()


def read_records(path: Path) -> Iterator[Record]:
    """Every document at `path` that is not empty."""
    for file in _files(path):
        try:
            if file.suffix == ".jsonl":
                yield from _read_lines(file)
            elif path.is_dir():
                with open(file, encoding="utf-8") as stream:
                    yield from _non_empty(str(file), stream.read(_CHARACTERS))
            else:
                yield from _read_separated(file)
        except UnicodeDecodeError as e:
            raise UsageError("the text is not UTF-8", where=str(file), mend="convert it to UTF-8") from e
        except OSError as e:
            raise UsageError(f"cannot be read ({e.strerror})", where=str(file)) from e


def _files(path: Path) -> Sequence[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix == ".txt" and p.is_file())
        if not files:
            raise UsageError("the directory has no .txt files", where=str(path), mend=FORMS)
        return files
    if not path.is_file():
        raise UsageError("there are no documents here", where=str(path), mend=FORMS)
    if path.suffix not in (".jsonl", ".txt"):
        raise UsageError(
            f"documents do not come as {path.suffix or 'a file without suffix'}", where=str(path), mend=FORMS
        )
    return [path]


def _read_lines(file: Path) -> Iterator[Record]:
    with open(file, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                parsed = _Line.model_validate_json(line)
            except ValidationError as e:
                raise UsageError(f"not a document: {e.errors()[0]['msg']}", where=where, mend=FORMS) from e
            ids = parsed.ids if parsed.ids is not None else parsed.prompt_ids
            if ids is None and parsed.whole is None:
                yield from _read_pair(line, where)
                continue
            prompt = parsed.prompt if parsed.text is None and ids is None else None
            for record in _non_empty(where, parsed.whole or "" if ids is None else ids):
                yield replace(record, prompt=prompt)


def _read_pair(line: str, where: str) -> Iterator[Record]:
    try:
        pair = _Pair.model_validate_json(line)
    except ValidationError as e:
        raise UsageError('neither "text" nor "ids" nor "source"', where=where, mend=FORMS) from e
    yield from _non_empty(where, pair.source, pair.target)


def _read_separated(file: Path) -> Iterator[Record]:
    with open(file, encoding="utf-8") as stream:
        parts, size, number = list[str](), 0, 1
        for line in stream:
            pieces = ["", ""] if line.strip() == "---" else line.split("\f")
            for piece in pieces[:-1]:
                yield from _non_empty(f"{file}, document {number}", "".join([*parts, piece]))
                parts, size, number = [], 0, number + 1
            if size < _CHARACTERS:
                parts.append(pieces[-1])
                size += len(pieces[-1])
        yield from _non_empty(f"{file}, document {number}", "".join(parts))


def _non_empty(where: str, content: str | list[int], target: str | list[int] | None = None) -> Iterator[Record]:
    content = content.strip() if isinstance(content, str) else content
    if content:
        yield Record(where, content, target)


def data_digest(path: Path) -> str:
    """SHA-256 of the file; for a directory, of its files' names and hashes."""
    if not path.is_dir():
        return _file_digest(path)
    names = "".join(f"{_file_digest(file)}  {file.name}\n" for file in _files(path))
    return hashlib.sha256(names.encode()).hexdigest()


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
