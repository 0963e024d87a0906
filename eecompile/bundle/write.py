"""Writing bundles: the core to a temporary sibling that is renamed into place, overlays one by one."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel

from eecompile import contract as c
from eecompile.bundle import disk
from eecompile.bundle.digest import document_digest, document_layout, file_sha256
from eecompile.bundle.manifest import FileInfo, Manifest
from eecompile.bundle.paths import is_outside_core, is_overlay, list_files, temporary_owner
from eecompile.bundle.read import Overlay, assemble, overlay_model, read_bundle, read_core, read_overlays
from eecompile.bundle.signature import load_private_key, signature_document
from eecompile.bundle.strict import parse_object, read_regular
from eecompile.errors import IntegrityError, UsageError
from eecompile.files import sync

_NO_DIGEST = "0" * 64
_ELSEWHERE = "choose another output, or remove what is there"


class BundleWriter:
    """Writes the core of a bundle that appears at `path` whole or not at all.

        with BundleWriter(out) as writer:
            ...                                  # files into writer.path
            writer.commit(fields)

    Leaving the block without `commit`, by an exception or Ctrl-C too, removes the temporary directory; those of
    killed builds go when the next one starts. Overlays and engines of an older bundle at `path` are not carried over.
    Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.final = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        self._lock: int | None = None

    @property
    def path(self) -> Path:
        """Where the core's files are to be written, until `commit`."""
        if self._temporary is None:
            raise RuntimeError("a bundle is written inside its `with` block and before `commit`")
        return self._temporary

    def __enter__(self) -> "BundleWriter":
        """Raises UsageError where something other than a bundle is in the way, EECompileError where it cannot write."""
        try:
            with disk.disk_faults(self.final):
                self.final.parent.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(self.final)
                check_replaceable(self.final)
                while self._lock is None:
                    self._make_temporary()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        temporary, fault = self._temporary, None
        if isinstance(error, OSError) and temporary and disk.is_disk_fault(error, temporary):
            fault = disk.disk_fault(error, self.final)  # judged while the disk is still full
        self._discard()
        if fault is not None:
            raise fault from error

    def commit(
        self,
        fields: Mapping[str, object],
        *,
        hashes: Mapping[str, str] | None = None,
        overlays: Mapping[str, BaseModel | Mapping[str, object]] | None = None,
    ) -> Manifest:
        """Finish the bundle and put it in place.

        fields: the manifest's, without format, version, files and digest. hashes: SHA-256 (hex) of files whose
        writer knows it, by name in the bundle. overlays: by name ("overlays/policy.json"), without kind, core and
        digest; without a policy every exit stays closed.
        Raises EECompileError where it cannot be written and IntegrityError where the result would not be read.
        """
        with disk.disk_faults(self.final):
            manifest = self._finished_manifest(fields, hashes or {})
            (self.path / c.MANIFEST).write_bytes(document_layout(manifest.model_dump(mode="json")))
            self._write_overlays(manifest, overlays or {})
            for folder, _, files in os.walk(self.path):
                for name in (*files, "."):
                    sync(Path(folder, name))
        read_bundle(self.path, integrity="size")
        with disk.disk_faults(self.final):
            check_replaceable(self.final)
            disk.replace_directory(self.path, self.final)
        self._discard()
        return manifest

    def _finished_manifest(self, fields: Mapping[str, object], hashes: Mapping[str, str]) -> Manifest:
        core = {name: size for name, size in sorted(list_files(self.path).items()) if not is_outside_core(name)}
        files = {
            name: FileInfo(bytes=size, sha256=hashes.get(name) or file_sha256(self.path / name))
            for name, size in core.items()
        }
        heading = {"format": c.FORMAT, "version": c.FORMAT_VERSION, "files": files, "digest": _NO_DIGEST}
        draft = Manifest.model_validate({**fields, **heading})
        return draft.model_copy(update={"digest": document_digest(draft.model_dump(mode="json"))})

    def _write_overlays(self, manifest: Manifest, overlays: Mapping[str, BaseModel | Mapping[str, object]]) -> None:
        closed = [{"layer": e.layer, "confident": None, "draft": None} for e in manifest.exits]
        (self.path / c.POLICY).parent.mkdir(exist_ok=True)
        for name, fields in {c.POLICY: {"exits": closed}, **overlays}.items():
            overlay = _finished_overlay(name, fields, manifest)
            (self.path / name).write_bytes(document_layout(overlay.model_dump(mode="json")))

    def _make_temporary(self) -> None:
        name = f".{self.final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        self._temporary = self.final.with_name(name)
        self._temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another build took it for abandoned
            self._lock, _ = disk.lock_directory(self._temporary) or (None, False)

    def _discard(self) -> None:
        try:
            self._remove_temporary()
        except BaseException:  # an interrupt: finish nevertheless
            self._remove_temporary()
            raise

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_overlay(
    bundle: Path, name: str, overlay: BaseModel | Mapping[str, object], *, key: Path | None = None
) -> Overlay:
    """Write one overlay of an intact bundle, in one step, and return it as it was written.

    name: in the bundle ("overlays/profile-orin.json"). overlay: a model or its fields; kind, core and digest are
    filled in. key: a PEM file of the private key to sign it with; without one a signature that it had is removed.
    Raises UsageError where a reader would refuse the result (nothing is written then), IntegrityError where the
    bundle is not intact, EECompileError where it cannot be written.
    """
    private = None if key is None else load_private_key(key)
    manifest, root, sizes = read_core(bundle)
    finished = _finished_overlay(name, overlay, manifest)
    others = read_overlays(root, manifest, {n: size for n, size in sizes.items() if n != name})
    try:
        assemble(root, manifest, {**others, name: finished})
    except IntegrityError as e:
        raise UsageError(f"not written, since the bundle would be refused: {e.what}", where=e.where, mend=e.mend) from e
    data, folder = document_layout(finished.model_dump(mode="json")), root / "overlays"
    signature = root / (name + c.SIGNATURE_SUFFIX)
    with disk.disk_faults(root / name):
        folder.mkdir(exist_ok=True)
        for left in sizes:
            if (owner := temporary_owner(left)) is not None and not disk.is_alive(owner):
                (root / left).unlink(missing_ok=True)
        signature.unlink(missing_ok=True)
        disk.write_atomically(root / name, data, folder)
        if private is not None:
            disk.write_atomically(signature, signature_document(name, data, private), folder)
    return finished


def check_replaceable(path: Path) -> None:
    """Raise UsageError unless `path` is free, an empty directory or a bundle with nothing foreign in it."""
    there = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    if there != path and not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError("the output cannot be made there", where=str(there), mend=_ELSEWHERE)
    if there != path:
        return
    if not path.is_dir():
        raise UsageError("the output is not a directory", where=str(path), mend=_ELSEWHERE)
    if not any(path.iterdir()):
        return
    try:
        document = parse_object(read_regular(path / c.MANIFEST, c.MAX_MANIFEST_BYTES), path / c.MANIFEST)
        files, found = document.get("files"), list_files(path)
    except IntegrityError as e:
        what = f"the output holds something other than a bundle ({e.what})"
        raise UsageError(what, where=str(path), mend=_ELSEWHERE) from e
    core = files if document.get("format") == c.FORMAT and isinstance(files, dict) else {}
    foreign = next((name for name in found if name not in core and not is_outside_core(name)), None)
    if not core or foreign is not None:
        what = f"the output holds something other than a bundle ({foreign or c.MANIFEST!a})"
        raise UsageError(what, where=str(path), mend=_ELSEWHERE)


def _finished_overlay(name: str, overlay: BaseModel | Mapping[str, object], manifest: Manifest) -> Overlay:
    if not is_overlay(name):
        mend = "use overlays/policy.json, overlays/calibration-*.json or overlays/profile-*.json"
        raise UsageError("not the name of an overlay", where=ascii(name), mend=mend)
    fields = overlay.model_dump(mode="json") if isinstance(overlay, BaseModel) else dict(overlay)
    if fields.get("core", manifest.digest) != manifest.digest:
        raise UsageError("made for another build: it names another core", where=name, mend="make it for this bundle")
    fields |= {"core": manifest.digest, "digest": _NO_DIGEST}
    draft = overlay_model(name).model_validate(fields)
    return draft.model_copy(update={"digest": document_digest(draft.model_dump(mode="json"))})


def _remove_abandoned(final: Path) -> None:
    """Remove the temporary directories of builds of `final` that were killed; bring back what one had put aside."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.tmp-([0-9]{{1,10}})-[0-9a-f]{{8}}(\.old)?")
    for entry in list(os.scandir(final.parent)):
        found = pattern.fullmatch(entry.name)
        if found is None or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):
            if (lock := disk.lock_directory(Path(entry.path))) is None:
                continue
            try:
                if found[2] and not os.path.lexists(final):
                    os.rename(entry.path, final)
                elif lock[1] or not disk.is_alive(int(found[1])):
                    shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(lock[0])
