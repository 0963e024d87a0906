"""The C++ runtime's sources in a bundle: all of them, hashed with the core, unless they are not wanted."""

from pathlib import Path

import pytest
import tiny
import tiny_encoder as te
from commands import cli

from eecompile import contract as c
from eecompile.bundle.read import read_bundle
from eecompile.bundle.sources import SOURCES, write_runtime


def sources() -> dict[str, bytes]:
    """What a bundle has to have, by its name there."""
    files = [path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.is_file()]
    return {f"{c.RUNTIME}/{inside}": (SOURCES / inside).read_bytes() for inside in files if inside.parts[0] != "fuzz"}


def test_all_sources_and_nothing_else(tmp_path: Path) -> None:
    write_runtime(tmp_path)
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == sources()
    assert {f"{c.RUNTIME}/CMakeLists.txt", f"{c.RUNTIME}/example/main.cpp"} <= set(found)
    assert sum(map(len, found.values())) < 1.25e6


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_build_has_them_and_they_are_part_of_the_core(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "checkpoint"
    if kind == "decoder":
        tiny.checkpoint(source, tiny.config(num_hidden_layers=1))
    else:
        te.checkpoint(source, te.config("bert", "tokens"))
    cli("build", source, "-o", tmp_path / "bundle", "--no-profile")
    listed = read_bundle(tmp_path / "bundle").manifest.files
    assert {name for name in listed if name.startswith(f"{c.RUNTIME}/")} == set(sources())
    cli("build", source, "-o", tmp_path / "bare", "--no-profile", "--no-runtime")
    assert set(read_bundle(tmp_path / "bare").manifest.files) == set(listed) - set(sources())
