"""Writing so that a kill leaves the old state or the new one, and saying plainly what a full disk is."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from eecompile.errors import EECompileError, UsageError
from eecompile.files import sync

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NEARLY_FULL = 1 << 20  # bytes; below this an OSError without a number (numpy's) is taken for a full disk
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux's fcntl.h and fs.h


@contextlib.contextmanager
def disk_faults(where: Path) -> Iterator[None]:
    """Turn an OSError raised inside into an EECompileError that says what it means for writing to `where`."""
    try:
        yield
    except OSError as e:
        raise disk_fault(e, where) from e


def disk_fault(error: OSError, where: Path) -> EECompileError:
    """`error`, met while writing to `where`, as an EECompileError."""
    if is_full(error, where):
        return EECompileError("no space left to write to", where=str(where), mend="free space, or write elsewhere")
    if error.errno in _CLOSED:
        mend = "choose a place you may write to, or change its permissions"
        return UsageError(f"cannot be written ({error.strerror})", where=str(where), mend=mend)
    return UsageError(f"cannot be written ({error})", where=str(where), mend="check the disk and the path")


def is_disk_fault(error: BaseException, where: Path) -> bool:
    """Whether `error` comes from writing under `where` rather than from reading something else."""
    if not isinstance(error, OSError):
        return False
    if is_full(error, where):
        return True
    return isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(where)


def is_full(error: OSError, where: Path) -> bool:
    """Whether `error` says that no more can be written; one without an errno is judged by the free space."""
    if error.errno is not None:
        return error.errno in _FULL
    there = next(path for path in (where, *where.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free < _NEARLY_FULL


def write_atomically(path: Path, data: bytes, scratch: Path) -> None:
    """Replace `path` by a file of `data`, through a temporary file in `scratch` (same disk). Raises EECompileError."""
    temporary = scratch / temporary_name(f".{path.name}.")
    try:
        with disk_faults(path):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_name(prefix: str) -> str:
    """A name for what this process writes meanwhile, which `remove_abandoned` knows by its prefix."""
    return f"{prefix}tmp-{os.getpid()}-{secrets.token_hex(4)}"


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the folders of such names that processes which no longer run have left in `folder`."""
    pattern = re.compile(rf"{re.escape(prefix)}tmp-([0-9]{{1,10}})-[0-9a-f]{{8}}")
    for entry in list(os.scandir(folder)):
        found = pattern.fullmatch(entry.name)
        if found and entry.is_dir(follow_symlinks=False) and not is_alive(int(found[1])):
            shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which takes the place of `path` once the block ends; where it fails `path` stays as it was.

    What a link points at is replaced, not the link; a device or a pipe is written to as it stands. Raises
    EECompileError where it cannot be written: at once, and when the block ends.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise UsageError("the output is a directory", where=str(path), mend="name a file")
    if path.exists() and not path.is_file():
        with disk_faults(path), open(path, "w", encoding="utf-8") as stream:
            yield stream
        return
    beside = path.with_name(temporary_name(f".{path.name}."))
    try:
        with disk_faults(path):
            with open(beside, "x", encoding="utf-8") as file:
                yield file
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def lock_directory(path: Path) -> tuple[int, bool] | None:
    """A descriptor of `path` and whether it holds a lock (not every file system can); None where another holds it.

    The lock lasts until the descriptor is closed or the process ends. Raises OSError where `path` is gone.
    """
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    except OSError:
        return number, False
    return number, True


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def replace_directory(new: Path, final: Path) -> None:
    """Put the directory `new` in the place of `final`; both are siblings. What was there is then at `new`, or gone.

    Where `final` holds something the two are exchanged in one step if the system can (Linux), otherwise in two; a
    failure between the two puts the old one back. Raises OSError.
    """
    if not os.path.lexists(final) or not any(final.iterdir()):
        os.rename(new, final)
    elif not _exchange(new, final):
        aside = new.with_name(f"{new.name}.old")
        os.rename(final, aside)
        try:
            os.rename(new, final)
        except BaseException:
            os.rename(aside, final)
            raise
        os.rename(aside, new)
    sync(final.parent)


def _exchange(one: Path, other: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(renameat2(*paths, ctypes.c_uint(_RENAME_EXCHANGE)) == 0)
