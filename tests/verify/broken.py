"""Bundles with one fault that no hash shows: whoever changed them made manifest and overlays agree again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout, file_sha256
from eecompile.verify import Check, VerifyReport


def reseal(bundle: Path) -> None:
    """Make the manifest list the files as they are now, and the overlays name the manifest."""
    path = bundle / c.MANIFEST
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": file_sha256(bundle / name)}
    _write(path, manifest)
    for overlay in (bundle / "overlays").glob("*.json"):
        _write(overlay, {**json.loads(overlay.read_text()), "core": manifest["digest"]})


def edit_weight(bundle: Path, tensor: str, edit: Callable[[Any], None], graph: str = "segment_0") -> None:
    """Edit the stored bytes of one tensor [bytes] in place."""
    model = onnx.load(str(bundle / f"segments/{graph}.onnx"), load_external_data=False)
    found = next(t for t in model.graph.initializer if t.name.split("+")[0] == tensor)
    where = {e.key: e.value for e in found.external_data}
    file = bundle / "segments" / where["location"]
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    edit(data[int(where["offset"]) : int(where["offset"]) + int(where["length"])])
    file.write_bytes(data.tobytes())
    reseal(bundle)


def edit_graph(bundle: Path, graph: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Edit one graph of the bundle."""
    path = bundle / f"segments/{graph}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    reseal(bundle)


def edit_recorded(bundle: Path, name: str, edit: Callable[[Any], Any]) -> None:
    """Replace one recorded array with what `edit` makes of it."""
    path = bundle / f"reference/{name}.npy"
    np.save(path, edit(np.load(path)))
    reseal(bundle)


def failed(report: VerifyReport) -> set[str]:
    """The names of the checks that failed."""
    return {check.name for check in report.checks if not check.passed}


def named(report: VerifyReport, name: str) -> Check:
    """The check called `name`."""
    return next(check for check in report.checks if check.name == name)


def _write(path: Path, document: dict[str, Any]) -> None:
    document["digest"] = document_digest(document)
    path.write_bytes(document_layout(document))
