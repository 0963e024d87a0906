"""From a bundle to engines: what `eecompile engines` does, and `build` where this machine is the device."""

from collections.abc import Callable
from pathlib import Path

from eecompile.bundle.disk import disk_faults
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.engines.build import EngineRequest, EnginesBuilt, build_engines
from eecompile.engines.builders import builder_for, plan_for_target
from eecompile.engines.machine import Builder
from eecompile.engines.plan import BuildPlan
from eecompile.errors import EECompileError, MissingBackend, UsageError
from eecompile.plugins.library import find_library
from eecompile.runtime.device_plan import device_plan
from eecompile.target import Target

Progress = Callable[[str], None]


def engines(
    bundle: Path, request: EngineRequest, *, target: Target | None = None, plugin: Path | None = None,
    progress: Progress = lambda stage: None,
) -> EnginesBuilt:  # fmt: skip
    """Build what is missing of a bundle's engines on this machine.

    target: another one than the bundle's. plugin: where the exit decision's library is, unless `make plugin` made it or
    the request wants its kernel inside of the engines.

    Raises IntegrityError where the bundle is not intact, UsageError where it needs no engines or this is another
    device, MissingBackend where this machine cannot build them.
    """
    files = read_bundle(bundle)
    plan = device_plan(files)
    plan = plan if target is None else plan_for_target(plan, target)
    _check_plugin(plan, request, plugin)
    library = None if request.aot else find_library(plugin)
    return _build(files, plan, builder_for(plan, library, aot=request.aot), request, progress)


def engines_here(bundle: Path, *, progress: Progress = lambda stage: None) -> EnginesBuilt | str:
    """As `engines`, right after a build; where this machine is not for it, why, in one line."""
    files = read_bundle(bundle, integrity="size")
    plan = device_plan(files)
    try:
        builder = builder_for(plan, find_library())
    except (MissingBackend, UsageError) as e:
        return _why(plan, e)
    return _build(files, plan, builder, EngineRequest(), progress)


def _check_plugin(plan: BuildPlan, request: EngineRequest, plugin: Path | None) -> None:
    """Refuse what the engines would have no use for."""
    if plugin is not None and request.aot:
        raise UsageError("engines that carry the exit decision call no library", mend="leave out --plugin or --aot")
    if plan.plugin == "never" and (plugin is not None or request.aot):
        option = "--aot" if request.aot else "--plugin"
        what = f"TensorRT-RTX has no plugins, and builds {plan.target}'s engines"
        raise UsageError(what, where=option, mend="leave it out: the decision's ONNX function is built")


def _build(
    files: BundleFiles, plan: BuildPlan, builder: Builder, request: EngineRequest, progress: Progress
) -> EnginesBuilt:
    with disk_faults(files.path):
        return build_engines(files.path, files.manifest.digest, plan, builder, request, progress=progress)


def _why(plan: BuildPlan, fault: EECompileError) -> str:
    count = len(plan.graphs)
    return f"its {count} engines are still to be built, not on this machine as it is: {fault.what}; {fault.mend}"
