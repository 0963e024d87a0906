"""The GPU of this machine, asked of the driver's own library: no CUDA toolkit and no Python package is needed."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eecompile.errors import MissingBackend

DRIVER = "libcuda.so.1"
ON_DEVICE = "copy the bundle to the device and run `eecompile engines BUNDLE` there"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, from cuda.h
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU. sm: compute capability, as 87. cuda: the newest CUDA version that its driver runs, as "12.6"."""

    name: str
    sm: int
    cuda: str


def read_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu:
    """The first GPU that CUDA shows. Raises MissingBackend where there is none, or no driver for it."""
    try:
        driver = load(DRIVER)
    except OSError as e:
        raise MissingBackend(f"there is no NVIDIA GPU here: {e}", mend=ON_DEVICE) from e
    version, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    calls = (
        ("cuInit", 0),
        ("cuDriverGetVersion", ctypes.byref(version)),
        ("cuDeviceGet", ctypes.byref(device), 0),
        ("cuDeviceGetName", name, _NAME_BYTES, device),
        ("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device),
        ("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device),
    )
    for function, *arguments in calls:
        if status := getattr(driver, function)(*arguments):
            raise MissingBackend(f"there is no usable NVIDIA GPU here: {function} returned {status}", mend=ON_DEVICE)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, cuda)
