"""Fixtures: a checkpoint with two kinds of exits, its intact bundle, copies of it to break."""

import shutil
import sys
from pathlib import Path

import pytest
import tiny

from eecompile.student.exits import ExitSpec

EXITS = [
    ExitSpec(
        layer=1, adapter="affine", gates=["learned", "entropy"], gate_units=4, draft={"learned": 0.5, "entropy": 4.0}
    ),
    ExitSpec(layer=3, gates=["max_prob", "margin"], draft={"max_prob": 0.05, "margin": 0.01}),
]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an exit of each kind."""
    return tiny.add_exits(tiny.checkpoint(tmp_path_factory.mktemp("source") / "model", gain=0.4), EXITS)


@pytest.fixture(scope="session")
def pristine(source: Path) -> Path:
    """Its bundle, which no test may change."""
    return tiny.bundle_at(source.parent / "bundle", source)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment where torch cannot be imported."""
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def no_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment where Polygraphy cannot be imported."""
    monkeypatch.setitem(sys.modules, "polygraphy", None)
