"""Files of engines: appear whole or not at all, hashed a megabyte at a time, never through a link."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from eecompile.errors import IntegrityError
from eecompile.files import sha256_of_file, sync

_TEMPORARY = ".tmp-"


def write_whole(path: Path, data: Iterable["bytes | memoryview"]) -> str:
    """Replace `path` by a file of the pieces of `data`, through a temporary beside it; returns its SHA-256 (hex).

    Raises OSError.
    """
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            for piece in data:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
        return digest.hexdigest()
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed builds have left in `folder`. Only while no other builds there (`locked`)."""
    for left in folder.glob(f".*{_TEMPORARY}*"):
        left.unlink(missing_ok=True)


def sha256_of(path: Path, *, where: str = "") -> str:
    """SHA-256 (hex) of a regular file; raises IntegrityError where there is none, or a link."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            return sha256_of_file(file)
    except OSError as e:
        raise IntegrityError(f"the file cannot be read ({e.strerror})", where=where or str(path)) from e
