"""TensorRT-RTX: engines for several GPUs at once, built on any machine, with a GPU or without.

It has no plugins: the exit decision is built from its ONNX function, which the parser inlines. Kernels are compiled
where an engine is loaded, so one engine for four compute capabilities takes the time and the bytes of one for one.
"""

from collections.abc import Callable
from typing import Any

from eecompile.engines.machine import Builder, check_version
from eecompile.engines.packages import load_module
from eecompile.engines.plan import BuildPlan


def rtx_builder(plan: BuildPlan, *, load: Callable[[str], Any] = load_module) -> Builder:
    """TensorRT-RTX here. Raises MissingBackend where it is not installed, UsageError where its version is another."""
    version = str(load("tensorrt_rtx").__version__)
    check_version("TensorRT-RTX", version, plan.tensorrt, plan.tensorrt_below)
    return Builder("tensorrt_rtx", tuple(plan.sm), version, several=True, times=False, strips=False)
