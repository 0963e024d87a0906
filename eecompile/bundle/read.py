"""The reader that trusts nothing: a bundle is either intact in every respect or refused with an IntegrityError."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout, file_sha256
from eecompile.bundle.graphs import check_graphs
from eecompile.bundle.manifest import Calibration, Manifest, Policy, Profile
from eecompile.bundle.paths import find_collision, is_outside_core, is_overlay, list_files, name_fault
from eecompile.bundle.ranges import calibration_fault, confident_fault, policy_fault
from eecompile.bundle.signature import load_public_key, verify_file
from eecompile.bundle.strict import COPY_AGAIN, fault, parse_object, read_regular, validated

Integrity: TypeAlias = Literal["hash", "size"]
Overlay: TypeAlias = Policy | Calibration | Profile
Document = TypeVar("Document", bound=Manifest | Policy | Calibration | Profile)

_HASH_THREADS = 4
_NOT_HERE = "give the directory that `eecompile build` wrote"
_RESTORE = "restore it from a copy of the bundle, or build the bundle again"
_REMOVE = "remove it and measure again with `eecompile profile BUNDLE`"


@dataclass(frozen=True)
class BundleFiles:
    """An intact bundle. `path` is its directory with links resolved; overlays are in the order of their names."""

    path: Path
    manifest: Manifest
    policy: Policy
    calibrations: tuple[Calibration, ...]
    profiles: tuple[Profile, ...]


def read_bundle(path: Path, *, integrity: Integrity = "hash", key: Path | None = None) -> BundleFiles:
    """Read the bundle at `path`, checking all of it.

    integrity: "hash" compares the SHA-256 of every core file, "size" their sizes only (overlays and graphs are
    checked in full either way). key: a PEM file; manifest and overlays then all have to be signed by that key.
    Raises IntegrityError, and UsageError where `key` is no key.
    """
    public = None if key is None else load_public_key(key)
    try:
        manifest, root, sizes = read_core(path, public)
        if integrity == "hash":
            _check_hashes(root, manifest)
        check_graphs(root, manifest)
        return assemble(root, manifest, read_overlays(root, manifest, sizes, public))
    except OSError as e:
        raise fault(f"the bundle cannot be read ({e.strerror})", e.filename or path, "check its permissions") from e


def read_core(path: Path, key: Ed25519PublicKey | None = None) -> tuple[Manifest, Path, dict[str, int]]:
    """The manifest, the directory with links resolved, and the bytes of every file found there, by name.

    Checks the manifest and that exactly the listed files are there in their sizes; raises IntegrityError.
    """
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        raise fault("there is no bundle here: not a directory", path, _NOT_HERE)
    manifest = _read_manifest(root, key)
    sizes = list_files(root)
    _check_files(root, manifest, sizes)
    return manifest, root, sizes


def read_overlays(
    root: Path, manifest: Manifest, names: Mapping[str, int], key: Ed25519PublicKey | None = None
) -> dict[str, Overlay]:
    """Every overlay among `names`, by name. Raises IntegrityError where one is not of this core or not intact."""
    overlays: dict[str, Overlay] = {}
    for name in sorted(filter(is_overlay, names)):
        data = read_regular(root / name, c.MAX_OVERLAY_BYTES)
        if key is not None:
            verify_file(root, name, data, key)
        overlays[name] = _parse(overlay_model(name), data, root / name)
    return overlays


def overlay_model(name: str) -> type[Policy] | type[Calibration] | type[Profile]:
    """The schema of the overlay called `name`."""
    if name == c.POLICY:
        return Policy
    return Calibration if name.startswith("overlays/calibration-") else Profile


def assemble(root: Path, manifest: Manifest, overlays: Mapping[str, Overlay]) -> BundleFiles:
    """Check the overlays against the manifest and each other. Raises IntegrityError naming the overlay."""
    for name, overlay in overlays.items():
        if overlay.core != manifest.digest:
            mend = _REMOVE if isinstance(overlay, Profile) else _RESTORE
            raise fault("made for another build: it names another core", root / name, mend)
        if isinstance(overlay, Calibration) and (reason := calibration_fault(overlay, manifest)):
            raise fault(reason, root / name, _RESTORE)
    policy = overlays.get(c.POLICY)
    if not isinstance(policy, Policy):
        raise fault("there is no policy", root / c.POLICY, COPY_AGAIN)
    calibrations = tuple(o for o in overlays.values() if isinstance(o, Calibration))
    if reason := policy_fault(policy, manifest) or confident_fault(manifest, policy, calibrations):
        raise fault(reason, root / c.POLICY, _RESTORE)
    profiles = tuple(o for o in overlays.values() if isinstance(o, Profile))
    return BundleFiles(root, manifest, policy, calibrations, profiles)


def _read_manifest(root: Path, key: Ed25519PublicKey | None) -> Manifest:
    path = root / c.MANIFEST
    if not os.path.lexists(path):
        raise fault("there is no bundle here: no manifest.json", root, _NOT_HERE)
    data = read_regular(path, c.MAX_MANIFEST_BYTES)
    if key is not None:
        verify_file(root, c.MANIFEST, data, key)
    document = parse_object(data, path)
    if document.get("format") != c.FORMAT:
        raise fault("not the manifest of an eecompile bundle", path, _NOT_HERE)
    version = document.get("version")
    if isinstance(version, int) and version > c.FORMAT_VERSION:
        what = f"made by a newer eecompile: format version {version}, this one reads {c.FORMAT_VERSION}"
        raise fault(what, path, "upgrade eecompile, or build the bundle again with this one")
    if version != c.FORMAT_VERSION or isinstance(version, bool):
        raise fault(f"unknown format version {ascii(version)[:40]}", path)
    return _parse(Manifest, data, path)


def _parse(model: type[Document], data: bytes, path: Path) -> Document:
    document = parse_object(data, path)
    parsed = validated(model, document, path)
    if document_digest(document) != parsed.digest:
        raise fault("changed by hand or damaged: it does not agree with its own digest", path)
    if document_layout(document) != data:
        raise fault("changed by hand: not in the layout that eecompile writes", path)
    return parsed


def _check_files(root: Path, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    for name in manifest.files:
        if (reason := name_fault(name)) is not None:
            raise fault(f"lists the file {name!a}: {reason}", root / c.MANIFEST)
        if is_outside_core(name) or name.startswith("overlays/"):
            raise fault(f"lists the file {name}, which is not of the core", root / c.MANIFEST)
    if (twins := find_collision([*manifest.files, *sizes])) is not None:
        raise fault(f"the names {twins[0]} and {twins[1]} are one on some file systems", root)
    for name, info in manifest.files.items():
        if name not in sizes:
            raise fault("the file is missing", root / name)
        if sizes[name] != info.bytes:
            raise fault(f"truncated or changed: {sizes[name]} bytes instead of {info.bytes}", root / name)
    for name in sizes:
        if name not in manifest.files and not is_outside_core(name):
            raise fault("a file that the manifest does not list", root / name, "remove it from the bundle")


def _check_hashes(root: Path, manifest: Manifest) -> None:
    largest_first = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)
    with ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1)) as pool:
        hashes = pool.map(file_sha256, [root / name for name in largest_first])
        for name, sha256 in zip(largest_first, hashes, strict=True):
            if sha256 != manifest.files[name].sha256:
                raise fault("changed: its SHA-256 is not the manifest's", root / name)
