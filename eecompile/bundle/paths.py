"""Names of files in a bundle: which are legal, which lie outside the core, and what is on the disk."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from eecompile import contract as c
from eecompile.bundle.strict import fault

_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_OVERLAY = re.compile(rf"overlays/(?:policy|(?:calibration|profile)-{_WORD})\.json")
_TEMPORARY = re.compile(r"overlays/\.[A-Za-z0-9._-]+\.tmp-([0-9]{1,10})-[0-9a-f]+")
MAX_ENTRIES = 4 * c.MAX_FILES
MAX_NAME = 200


def name_fault(name: str) -> str | None:
    """Why `name` may not be a file of a bundle, or None where it may: relative, POSIX, inside, portable."""
    if not name or len(name) > MAX_NAME:
        return f"the path is empty or longer than {MAX_NAME} characters"
    if not name.isprintable() or "\\" in name or ":" in name:
        return "the path holds a backslash, a colon or a character that cannot be printed"
    if name.startswith("/"):
        return "the path is absolute"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "the path has an empty, '.' or '..' component"
    return None


def is_overlay(name: str) -> bool:
    """Whether `name` is the policy, a calibration or a profile."""
    return _OVERLAY.fullmatch(name) is not None


def is_outside_core(name: str) -> bool:
    """Whether a file of this name may lie in a bundle without being listed in its manifest."""
    signed = name.removesuffix(c.SIGNATURE_SUFFIX)
    return (
        signed == c.MANIFEST
        or is_overlay(signed)
        or name == c.REPORT
        or name.startswith("engines/")
        or temporary_owner(name) is not None
    )


def temporary_owner(name: str) -> int | None:
    """The process that was writing the temporary overlay called `name`; None where it is no temporary."""
    found = _TEMPORARY.fullmatch(name)
    return int(found[1]) if found else None


def find_collision(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that a case-insensitive or normalising file system takes for one, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            return other, name
    return None


def list_files(root: Path) -> dict[str, int]:
    """Bytes of every file under `root`, by its name in the bundle.

    Raises IntegrityError on a link, a FIFO, a device, an illegal name, or more than MAX_ENTRIES entries.
    """
    sizes: dict[str, int] = {}
    pending, entries = [""], 0
    while pending:
        folder = pending.pop()
        for entry in _entries(root / folder):
            entries += 1
            if entries > MAX_ENTRIES:
                raise fault(f"more than {MAX_ENTRIES} files and directories", root)
            name = folder + entry.name
            mode = _checked_mode(root, name, entry)
            if stat.S_ISDIR(mode):
                pending.append(name + "/")
            else:
                sizes[name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _entries(folder: Path) -> "Iterator[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as e:
        raise fault(f"the directory cannot be read ({e.strerror})", folder, "check its permissions") from e


def _checked_mode(root: Path, name: str, entry: "os.DirEntry[str]") -> int:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise fault("a symbolic link, which a bundle may not hold", root / name, "copy the files themselves (cp -rL)")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise fault("neither a regular file nor a directory", root / name, "remove it from the bundle")
    if (reason := name_fault(name)) is not None:
        raise fault(f"not a legal name: {reason}", root / name, "remove it from the bundle")
    return mode
