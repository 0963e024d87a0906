"""What tests of engines share: a tiny bundle whose graphs are of standard operators, and one's own copy of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from planned import Source

from eecompile.bundle.read import read_bundle


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny bundle of two slots, whose graphs are of standard operators."""
    root = tmp_path_factory.mktemp("engines")
    path = tiny.bundle_at(root / "bundle", tiny.checkpoint(root / "checkpoint"), [2], slots=2)
    return path, read_bundle(path).manifest


@pytest.fixture
def bundle(source: Source, tmp_path: Path) -> Path:
    """A bundle of one's own; its files are the source's."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "segments").symlink_to(source[0] / "segments")
    return tmp_path / "bundle"


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a text the module `tensorrt` of processes that are started."""

    def place(text: str) -> None:
        (tmp_path / "tensorrt.py").write_text(text)

    path = [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return place
