"""Signing bundles and checking signatures: `<file>.sig` beside the manifest and every overlay."""

from collections.abc import Iterable
from pathlib import Path

from eecompile import contract as c
from eecompile.bundle.disk import disk_faults, write_atomically
from eecompile.bundle.paths import is_overlay, list_files
from eecompile.bundle.read import read_bundle, read_core, read_overlays
from eecompile.bundle.signature import (
    Signature,
    load_private_key,
    load_public_key,
    new_key,
    read_signature,
    signature_document,
)
from eecompile.bundle.strict import read_regular

__all__ = [
    "load_private_key",
    "load_public_key",
    "new_key",
    "sign_bundle",
    "signatures",
    "verify_signatures",
]


def sign_bundle(path: Path, key: Path) -> list[str]:
    """Sign the manifest and every overlay with the private key in `key`; return their names.

    The bundle is read first, hashes included. Raises IntegrityError where it is not intact, UsageError where `key`
    holds no private key, EECompileError where the signatures cannot be written.
    """
    private = load_private_key(key)
    root = read_bundle(path).path
    names = _signed_names(list_files(root))
    for name in names:
        document = signature_document(name, read_regular(root / name, c.MAX_OVERLAY_BYTES), private)
        with disk_faults(root / name):
            write_atomically(root / (name + c.SIGNATURE_SUFFIX), document, root / "overlays")
    return names


def verify_signatures(path: Path, key: Path) -> list[str]:
    """Check that the key in `key` signed the manifest and every overlay; return their names.

    Only signatures are checked: `read_bundle(path, key=key)` checks the rest as well. Raises IntegrityError, and
    UsageError where `key` is no key.
    """
    public = load_public_key(key)
    manifest, root, sizes = read_core(path, public)
    read_overlays(root, manifest, sizes, public)
    return _signed_names(sizes)


def signatures(path: Path) -> dict[str, Signature | None]:
    """What the bundle's signatures claim, by file, unverified; None where a file has none. Raises IntegrityError."""
    _, root, sizes = read_core(path)
    return {name: read_signature(root, name) for name in _signed_names(sizes)}


def _signed_names(names: Iterable[str]) -> list[str]:
    return [c.MANIFEST, *sorted(filter(is_overlay, names))]
