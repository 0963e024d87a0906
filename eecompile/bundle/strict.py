"""Reading files and JSON that nobody vouches for: regular files only, bounded, one meaning only."""

import json
import math
import os
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from eecompile.errors import IntegrityError

COPY_AGAIN = "copy the bundle again from where it came, or build it again with `eecompile build`"
SHOWN_ERRORS = 3
M = TypeVar("M", bound=BaseModel)


def fault(what: str, where: Path | str, mend: str = COPY_AGAIN) -> IntegrityError:
    """An IntegrityError whose `where` is safe to print whatever the file is called."""
    place = str(where)
    return IntegrityError(what, where=place if place.isprintable() else ascii(place), mend=mend)


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading; never follow a link in its last component, never wait on a FIFO.

    Raises IntegrityError.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise fault("the file is missing", path) from e
    except OSError as e:
        if path.is_symlink():
            raise fault("the file is a symbolic link", path, "copy the files themselves (cp -rL)") from e
        raise fault(f"the file cannot be read ({e.strerror})", path, "check its type and its permissions") from e
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise fault("not a regular file", path)
    return FileIO(number, "rb")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises IntegrityError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise fault(f"the file has {size} bytes, more than the {limit} a reader accepts", path)
        data = bytearray()
        while len(data) <= limit and (chunk := file.read(limit + 1 - len(data))):
            data += chunk
    if len(data) > limit:
        raise fault(f"the file grew past the {limit} bytes a reader accepts", path)
    return bytes(data)


def parse_object(data: bytes, where: Path) -> dict[str, object]:
    """The JSON object in `data`. Duplicate keys, NaN, infinities, deep nesting and bad UTF-8 raise IntegrityError."""
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError as e:
        raise fault("the JSON is nested too deeply", where) from e
    except UnicodeDecodeError as e:
        raise fault(f"not UTF-8 at byte {e.start}", where) from e
    except json.JSONDecodeError as e:
        raise fault(f"not JSON: {e.msg} at line {e.lineno}", where) from e
    except ValueError as e:
        raise fault(f"not JSON that a reader accepts: {str(e)[:200]}", where) from e
    if not isinstance(document, dict):
        raise fault("not a JSON object", where)
    return document


def validation_summary(error: ValidationError) -> str:
    """The first few errors on one line: where in the document and what is wrong with it."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in errors[:SHOWN_ERRORS]]
    more = f" (and {len(errors) - SHOWN_ERRORS} more)" if len(errors) > SHOWN_ERRORS else ""
    text = "; ".join(shown)[:1000] + more
    return text if text.isprintable() else ascii(text)


def validated(model: type[M], document: Mapping[str, object], where: Path) -> M:
    """`document` as `model`, strictly: no conversions, no unknown keys. Raises IntegrityError."""
    try:
        return model.model_validate(document, strict=True)
    except ValidationError as e:
        raise fault(f"does not follow the schema: {validation_summary(e)}", where) from e


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {ascii(twice)[:80]} stands twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name} is not finite")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value
