"""The wheel holds the package, all of it, and nothing else."""

import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tree() -> dict[str, Path]:
    """Every file of the packages, by its name in a wheel."""
    folders = [ROOT / "eecompile", ROOT / "training" / "eecompile_training", ROOT / "optimum"]
    paths = [p for folder in folders for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(ROOT)).removeprefix("training/"): p for p in paths}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that hatchling makes of this tree."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(path)


def test_the_wheel_is_the_tree(wheel: zipfile.ZipFile) -> None:
    files = set(tree())
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == files
    assert {"eecompile/py.typed", "eecompile/targets/cpu.toml", "eecompile_training/py.typed"} <= found


def test_files_are_unchanged(wheel: zipfile.ZipFile) -> None:
    for name, path in tree().items():
        assert wheel.read(name) == path.read_bytes()


def test_nothing_in_the_package_is_left_over() -> None:
    """Every file of the packages is of a kind that belongs there."""
    kinds = {path.suffix for path in tree().values()}
    assert kinds <= {".py", ".toml", ".typed", ".css", ".h", ".cpp", ".cu", ".cuh", ".inc", ".txt", ".md", ".cmake"}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    import eecompile

    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("eecompile", eecompile.__version__)
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "eecompile = eecompile.cli:main" in entry_points
    assert "[polygraphy.run.plugins]\neecompile = eecompile.polygraphy_plugin:arg_groups" in entry_points
    needed = {line.split(";")[0] for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line}
    assert not [line for line in needed if line.startswith(("torch", "transformers"))]
