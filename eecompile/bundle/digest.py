"""Canonical JSON, its layout on disk, and the digests a bundle is held together by.

A document's digest is the SHA-256 of its JSON without the top-level member `digest`: keys sorted, no whitespace,
UTF-8. On disk the same text stands indented, so a reader in another language checks a digest by dropping the
whitespace outside strings and the first `"digest":"...",`, and never has to format a number.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from eecompile import contract as c
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.bundle.strict import open_regular
from eecompile.files import sha256_of_file


def canonical_json(document: object) -> bytes:
    """UTF-8 JSON with sorted keys and no whitespace. Raises ValueError on NaN or infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def document_layout(document: Mapping[str, object]) -> bytes:
    """The only bytes a manifest, overlay or signature of this content may have on disk."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def document_digest(document: Mapping[str, object]) -> str:
    """SHA-256 (hex) of the canonical JSON of `document` without its `digest`."""
    return hashlib.sha256(canonical_json({k: v for k, v in document.items() if k != "digest"})).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a regular file, a megabyte at a time. Raises IntegrityError on a link or a special file."""
    with open_regular(path) as file:
        return sha256_of_file(file)


def gates_digest(exits: Sequence[ExitInfo], policy: Sequence[ExitPolicy]) -> str:
    """SHA-256 (hex) of what a calibration was measured with: exit layers, adapters, heads, criteria and gate weights.

    `exits` are the manifest's, `policy` the policy's exits in the same order (their thresholds do not count).
    Raises ValueError where the two differ in number.
    """
    described = [_described(info, chosen) for info, chosen in zip(exits, policy, strict=True)]
    return hashlib.sha256(canonical_json(described)).hexdigest()


def _described(info: ExitInfo, chosen: ExitPolicy) -> dict[str, object]:
    """What an exit does not have is left out, save for the members that the first exits had."""
    shape, said = info.model_dump(mode="json"), chosen.model_dump(mode="json")
    optional = {name: shape.pop(name) for name in ("head", "router", "predictor", "schedule")}
    optional |= {f"{kind}_weights": said[kind] for kind in ("router", "predictor")}
    kept = {name: value for name, value in optional.items() if value not in (None, c.FULL_HEAD)}
    return {**shape, "weights": said["gate"], **kept}
