"""The C++ runtime's sources in a bundle: a device compiles what it runs from the bundle alone."""

from pathlib import Path

from eecompile import contract as c

SOURCES = Path(__file__).parents[1] / "runtime" / "cpp"
_KINDS = {".cpp", ".h", ".inc", ".txt", ".cmake", ".md"}
_LEFT_OUT = {"fuzz"}  # folders that only the project's own tests compile


def write_runtime(root: Path) -> None:
    """Copy the sources into the folder `runtime` of the bundle that is being written at `root`."""
    for path in sorted(SOURCES.rglob("*")):
        inside = path.relative_to(SOURCES)
        if path.suffix not in _KINDS or inside.parts[0] in _LEFT_OUT:
            continue
        target = root / c.RUNTIME / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
