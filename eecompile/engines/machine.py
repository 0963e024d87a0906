"""The GPU of this machine, asked of the driver's own library: no CUDA toolkit and no Python package is needed."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from eecompile.errors import MissingBackend, UsageError
from eecompile.plugins.library import PluginLibrary

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


@dataclass(frozen=True)
class Builder:
    """What builds engines here. sm: compute capabilities that each engine will run on; several: they are named to the
    builder, which else builds for the GPU at hand. times, strips: it measures kernels, it can leave weights out.
    version, cuda: of what is installed. plugin: the library to register."""

    module: Literal["tensorrt", "tensorrt_rtx"]
    sm: tuple[int, ...]
    version: str
    cuda: str | None = None
    plugin: PluginLibrary | None = None
    device: str = ""
    several: bool = False
    times: bool = True
    strips: bool = True


def check_version(what: str, found: str, first: str, below: str = "") -> None:
    """Raise UsageError unless `first` <= `found` < `below`; versions as "10.3", empty where there is no bound."""
    if first and _numbers(found) < _numbers(first):
        raise UsageError(f"{what} {found} is older than {first}", mend="update it, or build for a target that has it")
    if below and _numbers(found) >= _numbers(below):
        raise UsageError(f"{what} {found} is not older than {below}", mend="build the bundle for a target that has it")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
