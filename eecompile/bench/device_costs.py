"""What passes of a bundle cost: as its profile has it, or by the cost model where its device is somewhere else."""

from eecompile.bench.cost import PassCosts
from eecompile.bench.cost_model import Setting, predict_costs
from eecompile.bench.profile import device_name
from eecompile.bench.rates import rates_from_target
from eecompile.bench.work_bundle import works_from_bundle
from eecompile.bundle.manifest import Manifest
from eecompile.bundle.read import BundleFiles
from eecompile.errors import UsageError
from eecompile.target import Target, load_target, target_names


def costs_of_bundle(files: BundleFiles, target: Target | None = None) -> PassCosts:
    """The bundle's profile, this device's where it has several; without any, the cost model's prediction for the target
    (that of the manifest, if it came with eecompile).

    Raises UsageError where there is neither a profile nor a target with a data sheet.
    """
    if files.profiles:
        here = device_name()
        return PassCosts.from_profile(next((p for p in files.profiles if p.device == here), files.profiles[0]))
    name = files.manifest.target
    if target is None and is_elsewhere(name):
        target = load_target(name)
    if target is None or not target.bandwidth:
        mend = "measure it first: `eecompile profile BUNDLE`"
        raise UsageError("the bundle has no profile to choose by", where=str(files.path), mend=mend)
    return costs_on_target(files, target)


def is_elsewhere(name: str) -> bool:
    """Whether a target of this name is a device whose costs its data sheet can tell."""
    return name in target_names() and load_target(name).bandwidth > 0


def costs_on_target(files: BundleFiles, target: Target) -> PassCosts:
    """What the cost model says of the bundle's graphs on the target, in the type that its engines compute in.

    Raises UsageError where the target has no data sheet.
    """
    manifest = files.manifest
    rates = rates_from_target(target, "float32" if manifest.device is None else manifest.device.compute)
    return predict_costs(works_from_bundle(manifest, files.path), rates, setting_from_manifest(manifest, target))


def setting_from_manifest(manifest: Manifest, target: Target) -> Setting:
    """How the bundle runs on the target."""
    return Setting.on(
        target,
        cap=manifest.pending_cap,
        minimum_rows=manifest.minimum_rows,
        prefill_rows=manifest.prefill_rows,
        context=manifest.model.context,
        slack=manifest.slack,
    )
