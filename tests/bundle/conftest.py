"""Fixtures: one intact tiny bundle a session, copies of it to break, and keys."""

import shutil
from pathlib import Path

import pytest
from tiny_bundle import build

from eecompile.bundle.sign import new_key, sign_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return build(tmp_path_factory.mktemp("pristine") / "bundle")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two private keys with their public ones beside them."""
    folder = tmp_path_factory.mktemp("keys")
    paths = folder / "mine.pem", folder / "other.pem"
    for path in paths:
        new_key(path)
    return paths


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path]) -> Path:
    """A copy signed by the first of `keys`."""
    sign_bundle(bundle, keys[0])
    return bundle
