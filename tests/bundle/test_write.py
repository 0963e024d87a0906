"""A bundle appears whole or not at all, whatever ends its build."""

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import (
    CALIBRATION,
    PROFILE,
    SAFE,
    build,
    calibration_fields,
    policy_fields,
    profile_fields,
    write_core,
)

from eecompile import contract as c
from eecompile.bundle import disk, write
from eecompile.bundle.digest import file_sha256
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import BundleWriter, write_overlay
from eecompile.errors import EECompileError, IntegrityError, UsageError


def seed_of(bundle: Path) -> object:
    """Which build of `write_core` an intact bundle is."""
    return read_bundle(bundle).manifest.provenance["seed"]


def commit(path: Path, seed: int = 0, prepare: Callable[[Path], object] = lambda root: None, **options: Any) -> None:
    with BundleWriter(path) as writer:
        fields = write_core(writer.path, seed)
        prepare(writer.path)
        writer.commit(fields, **{"overlays": {c.POLICY: policy_fields()}, **options})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_bundle_replaces_nothing_an_empty_directory_or_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "bundle"
    commit(path, 1)
    assert seed_of(path) == 1
    (path / "report.html").touch()
    commit(path, 2)
    assert seed_of(path) == 2
    assert not (path / "report.html").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    commit(empty, 3)
    assert seed_of(empty) == 3
    (tmp_path / "link").symlink_to(empty)
    commit(tmp_path / "link", 4)
    assert (tmp_path / "link").is_symlink()
    assert seed_of(empty) == 4
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty", "link"]


def test_bundles_are_reproducible(tmp_path: Path) -> None:
    assert snapshot(build(tmp_path / "a")) == snapshot(build(tmp_path / "b"))


def test_directories_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    commit(tmp_path / "bundle")
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_other_things_are_not_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a directory"), BundleWriter(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="something other than a bundle"), BundleWriter(tmp_path / "home"):
        pass
    (tmp_path / "home" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"something other than a bundle \('thesis.txt'\)"):
        commit(tmp_path / "home")
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"something other than a bundle \('notes.txt'\)"):
        commit(bundle)
    (bundle / "notes.txt").unlink()
    (bundle / "notes").symlink_to(tmp_path / "home")
    with pytest.raises(UsageError, match="a symbolic link"):
        commit(bundle)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


def test_what_comes_up_during_the_build_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def come_up(root: Path) -> None:
        path.mkdir()
        (path / "thesis.txt").touch()

    with pytest.raises(UsageError, match="something other"):
        commit(path, prepare=come_up)
    assert os.listdir(path) == ["thesis.txt"]


def test_known_hashes_are_believed_and_found_out(tmp_path: Path) -> None:
    name = "segments/all.weights"
    with BundleWriter(tmp_path / "bundle") as writer:
        fields = write_core(writer.path)
        known = {name: file_sha256(writer.path / name)}
        assert writer.commit(fields, hashes=known, overlays={c.POLICY: policy_fields()}).files[name].bytes == 64
    commit(tmp_path / "bundle", hashes={name: "0" * 64})
    with pytest.raises(IntegrityError, match="its SHA-256"):
        read_bundle(tmp_path / "bundle")


def test_without_a_policy_every_exit_is_closed(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        fields = write_core(writer.path)
        fields["exits"] = [{"layer": 1, "adapter": "norm", "gates": ["max_prob"]}]
        writer.commit(fields)
        with pytest.raises(RuntimeError, match="before `commit`"):
            writer.commit(fields)
    [exit_] = read_bundle(tmp_path / "bundle").policy.exits
    assert exit_.confident is exit_.draft is None


def test_what_would_be_refused_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="symbolic link"):
        commit(tmp_path / "bundle", prepare=lambda root: (root / "runtime").symlink_to(tmp_path))
    with pytest.raises(IntegrityError, match="no gate weights"):
        commit(tmp_path / "bundle", overlays={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError("x"), FileNotFoundError(2, "no")])
def test_an_interrupted_build_leaves_nothing(bundle: Path, error: BaseException) -> None:
    def fail(root: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        commit(bundle, 1, prepare=fail)
    assert os.listdir(bundle.parent) == ["bundle"]
    assert seed_of(bundle) == 0


def test_an_interrupt_while_replacing_keeps_the_old(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    renames: list[Path] = []

    def rename(source: Path, target: Path) -> None:
        renames.append(source)
        if len(renames) == 2:
            raise KeyboardInterrupt
        shutil.move(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        commit(bundle, 1)
    assert os.listdir(bundle.parent) == ["bundle"]
    assert seed_of(bundle) == 0


def test_replacing_without_an_exchange(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    commit(bundle, 1)
    assert os.listdir(bundle.parent) == ["bundle"]
    assert seed_of(bundle) == 1


def test_what_a_killed_build_put_aside_comes_back(bundle: Path) -> None:
    bundle.rename(bundle.with_name(".bundle.tmp-1-00000000.old"))
    with BundleWriter(bundle):
        pass
    assert os.listdir(bundle.parent) == ["bundle"]
    assert seed_of(bundle) == 0


def test_temporaries_of_running_builds_stay(bundle: Path) -> None:
    foreign = [".bundle.tmp-1-xyz", ".bundle.tmp", ".other.tmp-1-00000000"]
    for name in (*foreign, ".bundle.tmp-1-00000000", ".bundle.tmp-999999999-00000000"):
        (bundle.parent / name).mkdir()
    with BundleWriter(bundle) as one, BundleWriter(bundle) as other:
        assert one.path.is_dir()
        one.commit(write_core(one.path, 1), overlays={c.POLICY: policy_fields()})
        other.commit(write_core(other.path, 2), overlays={c.POLICY: policy_fields()})
    assert sorted(os.listdir(bundle.parent)) == sorted([*foreign, "bundle"])
    assert seed_of(bundle) == 2


def test_without_locks_the_process_number_decides(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(number: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(disk.fcntl, "flock", no_locks)
    for process in (os.getpid(), 999_999_999):
        (bundle.parent / f".bundle.tmp-{process}-00000000").mkdir()
    with BundleWriter(bundle):
        pass
    assert sorted(os.listdir(bundle.parent)) == [f".bundle.tmp-{os.getpid()}-00000000", "bundle"]


KILLED = """
    import pathlib, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it, and so would this
    sys.path.insert(0, sys.argv[1])
    from tiny_bundle import policy_fields, write_core
    from eecompile.bundle.write import BundleWriter
    print("ready", flush=True)
    for seed in range(1, 1_000_000):
        with BundleWriter(pathlib.Path(sys.argv[2])) as writer:
            writer.commit(write_core(writer.path, seed), overlays={"overlays/policy.json": policy_fields()})
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_the_old_or_the_new(bundle: Path, sent: signal.Signals) -> None:
    for _ in range(3):
        arguments = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(bundle)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0.02, 0.15))
            process.send_signal(sent)
        assert isinstance(seed_of(bundle), int)
        if sent == signal.SIGINT:
            assert os.listdir(bundle.parent) == ["bundle"]
    with BundleWriter(bundle):
        pass
    assert os.listdir(bundle.parent) == ["bundle"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a file system cannot be mounted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    bundle = build(small_disk / "bundle")
    before = snapshot(bundle)
    with pytest.raises(EECompileError, match="no space left") as caught, BundleWriter(bundle) as writer:
        (writer.path / "big").write_bytes(bytes(1 << 20))
    assert caught.value.mend
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(EECompileError, match="no space left"):
        commit(bundle)
    with pytest.raises(EECompileError, match="no space left"):
        write_overlay(bundle, "overlays/profile-new.json", profile_fields())
    assert sorted(os.listdir(small_disk)) == ["bundle", "filler"]
    assert snapshot(bundle) == before


def test_a_full_disk_that_numpy_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_NEARLY_FULL", 1 << 62)
    with pytest.raises(EECompileError, match="no space left"), BundleWriter(tmp_path / "bundle"):
        raise OSError("1000 requested and 0 written")
    assert os.listdir(tmp_path) == []


def test_a_file_that_may_not_grow(bundle: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(EECompileError, match="no space left"):
            commit(bundle)
        with pytest.raises(EECompileError, match="no space left"):
            write_overlay(bundle, PROFILE, profile_fields())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(bundle.parent) == ["bundle"]
    assert seed_of(bundle) == 0


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EECompileError, match="cannot be written") as caught:
        commit(Path("/proc/bundle"))
    assert caught.value.mend
    (tmp_path / "file").touch()
    with pytest.raises(EECompileError, match="cannot be written"):
        commit(tmp_path / "file" / "bundle")
    with pytest.raises(EECompileError, match="cannot be written"):
        commit(tmp_path / ("x" * 250))
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    with pytest.raises(EECompileError, match="may write to"):
        commit(tmp_path / "bundle")


def test_overlays_are_written_one_by_one(bundle: Path) -> None:
    fields = {**profile_fields(), "device": "orin"}
    name = "overlays/profile-orin.json"
    written = write_overlay(bundle, name, fields)
    assert read_bundle(bundle).profiles[1] == written
    assert write_overlay(bundle, name, written) == written


def test_overlays_that_would_be_refused_are_not_written(bundle: Path) -> None:
    before = snapshot(bundle)
    with pytest.raises(UsageError, match="not the name of an overlay"):
        write_overlay(bundle, "overlays/../manifest.json", {})
    with pytest.raises(UsageError, match="made for another build"):
        write_overlay(bundle, PROFILE, {**profile_fields(), "core": "0" * 64})
    with pytest.raises(UsageError, match="refused: bolder than calibrated"):
        write_overlay(bundle, c.POLICY, policy_fields(confident={**SAFE, "learned": 0.1}))
    with pytest.raises(UsageError, match="refused: confident thresholds without"):
        write_overlay(bundle, CALIBRATION, calibration_fields(chosen=None))
    with pytest.raises(ValueError, match="threads"):
        write_overlay(bundle, PROFILE, {**profile_fields(), "threads": 0})
    assert snapshot(bundle) == before


def test_a_policy_that_is_gone_or_damaged_can_be_written_anew(bundle: Path) -> None:
    (bundle / c.POLICY).write_text("{")
    write_overlay(bundle, c.POLICY, policy_fields())
    (bundle / c.POLICY).unlink()
    write_overlay(bundle, c.POLICY, policy_fields())
    assert read_bundle(bundle).policy.exits[0].confident is None


def test_temporary_overlays_of_killed_writers_go(bundle: Path) -> None:
    left = [f"overlays/.policy.json.tmp-{process}-00ff" for process in (999_999_999, os.getpid())]
    for name in left:
        (bundle / name).touch()
    write_overlay(bundle, PROFILE, profile_fields())
    assert [(bundle / name).exists() for name in left] == [False, True]


def test_an_overlay_is_the_old_or_the_new(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(bundle)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_overlay(bundle, PROFILE, {**profile_fields(), "device": "new"})
    assert snapshot(bundle) == before


def test_the_old_bundle_is_never_examined_for_more_than_its_files(bundle: Path) -> None:
    (bundle / c.MANIFEST).write_text('{"format": "eecompile-bundle", "files": []}')
    with pytest.raises(UsageError, match="something other"):
        write.check_replaceable(bundle)
