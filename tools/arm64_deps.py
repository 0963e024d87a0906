"""Gather what the C++ runtime needs on arm64: ONNX Runtime's library from the wheel of the version installed here.

    python tools/arm64_deps.py --deps build/deps --out build/deps-arm64

makes a prefix for CMAKE_PREFIX_PATH like `make cpp-deps`, whose headers it takes.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from eecompile.errors import EECompileError, MissingBackend

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
MEND = "install the arm64 library by other means, and put it into the prefix as lib/libonnxruntime.so.1"


def gather(deps: Path, out: Path) -> None:
    """Fill the prefix `out`. Raises MissingBackend where the registry has no such wheel."""
    shutil.copytree(deps / "include", out / "include", dirs_exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.rpartition("/")[2].startswith("libonnxruntime.so.1")]
            if not names:
                raise MissingBackend(f"{wheel.name} has no shared library", mend=MEND)
            (out / "lib").mkdir(parents=True, exist_ok=True)
            (out / "lib" / "libonnxruntime.so.1").write_bytes(archive.read(names[0]))


def _download(folder: Path) -> Path:
    version = importlib.metadata.version("onnxruntime")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    done = subprocess.run([*pip, "-d", str(folder), f"onnxruntime=={version}"], capture_output=True, text=True)
    if done.returncode != 0:
        raise MissingBackend(f"pip finds no onnxruntime {version} for arm64: {done.stderr.strip()[-400:]}", mend=MEND)
    return next(folder.glob("*.whl"))


def main() -> None:
    """Parse the command line and gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deps", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        gather(arguments.deps, arguments.out)
    except EECompileError as e:
        raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
