"""Compiles the C++ runtime; what that needs is gathered by `make cpp-deps`."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "eecompile" / "runtime" / "cpp"
DEPS = ROOT / "build" / "deps"
TENSORRT = ROOT / "build" / "tensorrt-headers" / "kernel_lens" / "include" / "tensorrt"
CUDA = Path("/usr/local/cuda/include/cuda_runtime_api.h")


def compile_all(name: str, *options: str) -> Path:
    """A folder with everything built of the C++ sources, kept between runs; skips where the tools are not there."""
    if missing := [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not installed: the C++ runtime stays uncompiled here")
    if not (DEPS / "include" / "onnxruntime").exists():
        pytest.skip("there are no headers to compile with: run `make cpp-deps`")
    if (TENSORRT / "NvInferRuntime.h").exists() and CUDA.exists():
        parser = ROOT / "tests" / "engines" / "native" / "parser"
        options = (
            f"-DTENSORRT_INCLUDE={TENSORRT}", f"-DONNX_PARSER_INCLUDE={parser}", "-DEECOMPILE_TENSORRT=ON", *options,
        )  # fmt: skip
    folder = ROOT / "build" / f"{name}-{hashlib.sha256(str(SOURCES).encode()).hexdigest()[:8]}"
    settings = [f"-DCMAKE_PREFIX_PATH={DEPS}", "-DEECOMPILE_WERROR=ON", *options]
    for command in (["-S", SOURCES, "-B", folder, *settings], ["--build", folder, "-j2"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder
