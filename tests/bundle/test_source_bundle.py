"""Bundles of encoder-decoders that do not hang together are refused before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_t5

from eecompile.bundle.digest import document_digest, document_layout
from eecompile.bundle.read import read_bundle
from eecompile.errors import IntegrityError


@pytest.fixture
def bundle(shelf: Any, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    shutil.copytree(shelf.bundle(tiny_t5.t5(), [1, 3]).files.path, path)
    return path


def rewritten(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another manifest, which agrees with its own digest."""
    document = json.loads((path / "manifest.json").read_text())
    edit(document)
    document["digest"] = document_digest(document)
    (path / "manifest.json").write_bytes(document_layout(document))
    return path


def first_segment(m: dict[str, Any]) -> dict[str, Any]:
    """The first segment's entry."""
    found: dict[str, Any] = m["graphs"]["segments"][0]
    return found


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no encoder": (lambda m: m["graphs"].update(encoder=None), "belong together"),
    "no source": (lambda m: m.update(source=None), "belong together"),
    "neither": (lambda m: (m.update(source=None), m["graphs"].update(encoder=None)), "do not take what an encoder"),
    "start": (lambda m: m["source"].update(start=tiny.VOCAB), "start token"),
    "slots": (lambda m: m.update(slots=2), "one slot"),
    "context": (lambda m: m["source"].update(context=0), "source.context"),
    "outputs": (lambda m: m["graphs"]["encoder"]["outputs"].pop(), "does not give every layer"),
    "inputs": (lambda m: m["graphs"]["encoder"]["inputs"].pop(), "does not give every layer"),
    "segment": (lambda m: first_segment(m)["inputs"].pop(), "do not take what an encoder"),
    "layer": (lambda m: first_segment(m)["inputs"][-1].update(name="cross_value_9"), "do not take what an encoder"),
    "heads": (lambda m: m["graphs"]["encoder"]["outputs"][0].update(shape=["B", 3, "E", 16]), "not the model's size"),
    "file": (lambda m: m["graphs"]["encoder"].update(path="segments/other.onnx"), "not among the manifest's files"),
    "graph": (lambda m: m["graphs"]["encoder"].update(path="segments/embed.onnx"), "the manifest says"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_refused(bundle: Path, name: str) -> None:
    read_bundle(bundle, integrity="size")
    edit, message = FAULTS[name]
    with pytest.raises(IntegrityError, match=message):
        read_bundle(rewritten(bundle, edit), integrity="size")


def test_a_decoder_needs_no_source(shelf: Any) -> None:
    manifest = shelf.bundle(tiny.config(), [1, 3]).manifest
    assert (manifest.source, manifest.graphs.encoder) == (None, None)
