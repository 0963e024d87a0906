"""Which back end builds a plan's engines, and a plan for another target than its bundle was built for."""

from eecompile.engines.machine import Builder
from eecompile.engines.plan import BuildPlan
from eecompile.engines.tensorrt import tensorrt_builder
from eecompile.engines.tensorrt_rtx import rtx_builder
from eecompile.errors import UsageError
from eecompile.plugins.library import PluginLibrary
from eecompile.target import Target


def builder_for(plan: BuildPlan, plugin: PluginLibrary | None = None, *, aot: bool = False) -> Builder:
    """What builds the plan's engines on this machine. plugin: the exit decision's library; aot: engines are to carry
    its kernel. TensorRT-RTX has no use for either. Raises MissingBackend and UsageError, saying what is missing or
    different here."""
    return rtx_builder(plan) if plan.backend == "tensorrt_rtx" else tensorrt_builder(plan, plugin, aot=aot)


def plan_for_target(plan: BuildPlan, target: Target) -> BuildPlan:
    """The same graphs as engines of another device, whose parser takes their dialect. Raises UsageError."""
    if target.name == plan.target:
        return plan
    if target.backend == "onnxruntime":
        raise UsageError(f"the target {target.name} has no engines", mend="it runs bundles as they are")
    if target.dialect != plan.dialect or plan.precision not in target.precisions:
        raise UsageError(
            f"graphs of {plan.precision} in the {plan.dialect} dialect are not for {target.name}",
            mend=f"build the bundle for it: eecompile build CKPT --target {target.name}",
        )
    if plan.plugin == "required" and target.backend == "tensorrt_rtx":
        raise UsageError(f"these graphs need a plugin, and {target.name} has none")
    reaches = {"tensorrt_rtx": "never", "tensorrt": plan.plugin if plan.plugin == "required" else "preferred"}
    return plan.model_copy(update={
        "target": target.name, "backend": target.backend, "sm": target.sm, "tensorrt": target.tensorrt,
        "tensorrt_below": target.tensorrt_below, "cuda": target.cuda, "plugin": reaches[target.backend],
    })  # fmt: skip
