"""Changes to a bundle's core after which it is intact again, as another build would have made it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout


def replace_file(root: Path, name: str, data: bytes | None) -> None:
    """Give the core file `name` other content, or remove it; manifest and overlays agree with that."""
    manifest = json.loads((root / c.MANIFEST).read_text())
    if data is None:
        del manifest["files"][name]
        (root / name).unlink()
    else:
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (root / name).write_bytes(data)
    digest = _write(root / c.MANIFEST, manifest)
    for overlay in (root / "overlays").glob("*.json"):
        _write(overlay, {**json.loads(overlay.read_text()), "core": digest})


def _write(path: Path, document: dict[str, Any]) -> str:
    document["digest"] = document_digest(document)
    path.write_bytes(document_layout(document))
    return str(document["digest"])
