"""Compilers, and the headers that the plugin library is compiled against where there is no TensorRT."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "eecompile" / "plugins" / "exit_decision"
HEADERS = ROOT / "build" / "tensorrt-headers" / "kernel_lens" / "include" / "tensorrt"
CAPABILITIES = (80, 86, 87, 89, 90, 100, 110, 120)  # of every GPU that a target names


def compiler(name: str) -> str:
    """The path of a compiler; skips where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: the C++ sources stay uncompiled here")
    return found


def tensorrt_headers() -> Path:
    """The folder of NvInferRuntime.h; skips where it was not fetched."""
    if not (HEADERS / "NvInferRuntime.h").is_file():
        pytest.skip("no TensorRT headers: make build/tensorrt-headers/.done")
    return HEADERS


def cuda_headers() -> Path:
    """The folder of cuda_runtime_api.h that belongs to nvcc."""
    nvcc = Path(compiler("nvcc")).resolve()
    for root in (nvcc.parents[1], Path("/usr/local/cuda")):
        if (root / "include" / "cuda_runtime_api.h").is_file():
            return root / "include"
    pytest.skip("nvcc is here, CUDA's headers are not")


def estimate() -> ModuleType:
    """tools/plugin_estimate.py."""
    return load_script("plugin_estimate")
