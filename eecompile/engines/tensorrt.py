"""TensorRT: engines are built for the GPU at hand, by the version of TensorRT that will run them."""

from collections.abc import Callable
from typing import Any

from eecompile.engines.machine import Builder, Gpu, check_version, read_gpu
from eecompile.engines.packages import load_module
from eecompile.engines.plan import BuildPlan
from eecompile.errors import MissingBackend, UsageError
from eecompile.plugins.exit_decision.aot import FIRST_AOT
from eecompile.plugins.library import MEND, PluginLibrary


def tensorrt_builder(
    plan: BuildPlan, plugin: PluginLibrary | None, *, aot: bool = False,
    gpu: Callable[[], Gpu] = read_gpu, load: Callable[[str], Any] = load_module,
) -> Builder:  # fmt: skip
    """TensorRT on this machine, which has to be the plan's device. plugin: the exit decision's library, if any. aot:
    engines are to carry its kernel instead.

    Raises MissingBackend where GPU, TensorRT or a plugin that the graphs need is missing, UsageError where this is
    another GPU or version than the plan is for.
    """
    found = gpu()
    version = str(load("tensorrt").__version__)
    if found.sm not in plan.sm:
        raise UsageError(
            f"this machine's GPU, {found.name}, is SM {found.sm}, and {plan.target} is SM {_listed(plan.sm)}",
            mend="run this on that device, or name a target of this GPU with --target",
        )
    check_version("TensorRT", version, plan.tensorrt, plan.tensorrt_below)
    check_version("the driver's CUDA", found.cuda, plan.cuda)
    if aot:
        check_version("engines that carry the exit decision: TensorRT", version, FIRST_AOT)
    elif plan.plugin == "required" and plugin is None:
        raise MissingBackend(
            "the exit decision's plugin library is missing, and these graphs need it",
            mend=f"{MEND}; then name it with --plugin",
        )
    return Builder("tensorrt", (found.sm,), version, found.cuda, plugin, found.name)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
