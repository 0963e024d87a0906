"""Gathers what the C++ runtime is compiled with and runs on: headers of Debian's packages, the library of the wheel.

    python tools/cpp_deps.py --out build/deps

makes a prefix for CMAKE_PREFIX_PATH: include/nlohmann, include/onnxruntime, lib/libonnxruntime.so.1. Debian 13 is the
first that has ONNX Runtime's headers, so its suite is asked, in an apt state of its own: the machine's is left alone.
Nothing of it needs root.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from eecompile.errors import EECompileError, MissingBackend

SUITE = "trixie"
PACKAGES = ("nlohmann-json3-dev", "libonnxruntime-dev")
HEADERS = ("nlohmann", "onnxruntime")
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
MEND = f"install {' and '.join(PACKAGES)} by other means, and give their prefix to CMake as CMAKE_PREFIX_PATH"


def gather(out: Path) -> None:
    """Fill the prefix `out`. Raises MissingBackend where a tool or package is not to be had."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in PACKAGES:
            _unpack(_download(folder, name), folder / "root")
        for name in HEADERS:
            shutil.copytree(folder / "root/usr/include" / name, out / "include" / name, dirs_exist_ok=True)
    (out / "lib").mkdir(parents=True, exist_ok=True)
    shutil.copy2(wheel_library(), out / "lib/libonnxruntime.so.1")


def wheel_library() -> Path:
    """The shared library in the installed onnxruntime. Raises MissingBackend."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found is not None and found.origin else Path()
    library = next(iter(sorted(folder.glob("libonnxruntime.so.1*"))), None)
    if library is None:
        raise MissingBackend("the onnxruntime package has no shared library", mend="pip install onnxruntime")
    return library


def sources_of(suite: str, text: str) -> str:
    """A machine's apt sources (deb822, or a line each) for Debian's `suite`, without its updates."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = re.compile(r"\b(?:bookworm|trixie|forky|sid|stable|testing)(-updates|-security|-backports)?\b")

    def replaced(found: "re.Match[str]") -> str:
        return suite + "-security" if found[1] == "-security" else "" if found[1] else suite

    return "\n".join(names.sub(replaced, line) if line.startswith(("Suites:", "deb ")) else line for line in lines)


def _download(folder: Path, name: str) -> Path:
    settings = _apt(folder)
    if not (folder / "updated").exists():
        _run(["apt-get", "-qq", *settings, "update"], folder)
        (folder / "updated").touch()
    _run(["apt-get", "-qq", *settings, "download", name], folder)
    return next(folder.glob(f"{name}_*.deb"))


def _apt(folder: Path) -> list[str]:
    """apt's options for a state of its own in `folder`."""
    source = next((path for path in SOURCES if path.exists()), None)
    if source is None or shutil.which("apt-get") is None:
        raise MissingBackend("this machine has no Debian packages to fetch", mend=MEND)
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    (folder / "parts").mkdir(exist_ok=True)
    (folder / "parts" / ("debian" + (source.suffix if source.suffix == ".sources" else ".list"))).write_text(
        sources_of(SUITE, source.read_text())
    )
    places = {"Etc::sourcelist": "empty.list", "Etc::sourceparts": "parts", "State::lists": "lists", "Cache": "cache"}
    (folder / "empty.list").touch()
    return [part for name, place in places.items() for part in ("-o", f"Dir::{name}={folder / place}")]


def _unpack(package: Path, root: Path) -> None:
    _run(["dpkg", "-x", str(package), str(root)], root.parent)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as e:
        said = getattr(e, "stderr", "") or str(e)
        raise MissingBackend(f"{command[0]} failed: {said.strip()[-400:]}", mend=MEND) from e


def main() -> None:
    """Parse the command line and gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    try:
        gather(parser.parse_args().out)
    except EECompileError as e:
        raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
