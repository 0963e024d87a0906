"""Where a student with fitted exits is written: a copy of its checkpoint that appears whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from eecompile import contract as c
from eecompile.bundle import disk
from eecompile.errors import UsageError

SOURCE: Final = "eecompile exits"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


@contextlib.contextmanager
def replacing_student(checkpoint: Path, out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in; what is then at its "student" takes the place of `out`, unless something fails.

    Raises UsageError where `out` holds something other than such a student, EECompileError for a full or closed disk.
    """
    check_output(checkpoint, out)
    final = Path(os.path.realpath(out))
    with disk.disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        disk.remove_abandoned(final.parent, f".{final.name}.")
        work = final.with_name(disk.temporary_name(f".{final.name}."))
        try:
            work.mkdir()
            yield work
            check_output(checkpoint, final)
            disk.replace_directory(work / "student", final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Make the directory `target` with the files of the checkpoint: weights by hard link, or copied where that fails.

    Exits it had, pickled weights and folders are left out; the files of `source` are never written to.
    """
    target.mkdir()
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.name in (c.EARLY_EXIT, c.EARLY_EXIT_WEIGHTS) or file.suffix in _PICKLES:
            continue
        if file.suffix == ".safetensors":
            try:
                os.link(os.path.realpath(file), target / file.name)
                continue
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(file, target / file.name)


def check_output(checkpoint: Path, out: Path) -> None:
    """Raise UsageError unless `out` is free, empty, or a student that this project wrote, and not the checkpoint."""
    mend = "choose another output"
    if os.path.realpath(checkpoint) == os.path.realpath(out):
        raise UsageError("the output is the checkpoint itself, which is never changed", where=str(out), mend=mend)
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        source = json.loads((out / c.EARLY_EXIT).read_text(encoding="utf-8"))["provenance"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        source = None
    if source != SOURCE:
        raise UsageError("the output holds something other than fitted exits", where=str(out), mend=mend)
