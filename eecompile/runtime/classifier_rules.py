"""What a classifier may do: which exits are open, at which thresholds, and whether that was calibrated."""

from collections.abc import Mapping, Sequence

from eecompile import contract as c
from eecompile.bundle.manifest import ExitPolicy
from eecompile.bundle.ranges import confident_fault, matching_calibrations, thresholds_fault
from eecompile.bundle.read import BundleFiles
from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime.labels import ClassRule
from eecompile.schema import Thresholds

Overrides = Mapping[int, Thresholds | None]


def check_mode(mode: str) -> None:
    """Raise UsageError for a mode that classifiers do not have."""
    if mode == "exact":
        mend = "use mode full, or mode confident with a calibration"
        raise UsageError("a classifier has no mode exact: there is no later pass that could check an exit", mend=mend)
    if mode not in c.CLASSIFY_MODES:
        raise UsageError(f"there is no mode {mode!r}", mend=f"modes: {', '.join(c.CLASSIFY_MODES)}")


def granularity_of(files: BundleFiles, granularity: str | None) -> str:
    """What leaves a batch: as asked for, or tokens where the policy's thresholds were tested so, or whole texts."""
    able = ["sentence", "token"] if files.manifest.task == c.TOKENS else ["sentence"]
    if granularity is None:
        tested = _is_tested(files, [e.confident for e in files.policy.exits])
        only = _calibrated(files, "token") and not _calibrated(files, "sentence")
        return "token" if tested or only else "sentence"
    if granularity not in able:
        mend = f"granularities of a {files.manifest.task}: {', '.join(able)}"
        raise UsageError(f"there is no granularity {granularity!r} here", mend=mend)
    return granularity


def confident_rules(files: BundleFiles, granularity: str, overrides: Overrides, depth: int) -> list[ClassRule | None]:
    """The open exits of confident mode. depth: layers that every text runs. Raises Uncalibrated, UsageError."""
    exits = _overridden(files, overrides)
    _check_calibrated(files, exits, granularity)
    chosen = [None if e.confident is None or e.layer < depth else e.confident for e in exits]
    if granularity == "token" and any(thresholds is not None for thresholds in chosen):
        _check_tested(files, chosen)
    return [None if thresholds is None else ClassRule.of(thresholds) for thresholds in chosen]


def _overridden(files: BundleFiles, overrides: Overrides) -> list[ExitPolicy]:
    infos = {info.layer: info for info in files.manifest.exits}
    for layer, thresholds in overrides.items():
        if layer not in infos:
            raise UsageError(f"there is no exit at layer {layer}", mend=f"exits: {sorted(infos)}")
        if thresholds is not None and (reason := thresholds_fault(thresholds, infos[layer], files.manifest.classes)):
            raise UsageError(f"exit {layer}: {reason}")
    return [
        e.model_copy(update={"confident": overrides[e.layer]}) if e.layer in overrides else e
        for e in files.policy.exits
    ]


def _check_calibrated(files: BundleFiles, exits: Sequence[ExitPolicy], granularity: str) -> None:
    manifest, policy, kv = files.manifest, files.policy, c.GRANULARITIES[granularity]
    if manifest.exits and not matching_calibrations(manifest, policy, files.calibrations, kv):
        raise Uncalibrated(
            f"no calibration of these exits for {manifest.precision} and exits per {granularity} allows any of them",
            mend=f"run `eecompile calibrate BUNDLE --data FILE --granularity {granularity}`, or use mode full",
        )
    changed = policy.model_copy(update={"exits": list(exits)})
    fault = confident_fault(manifest, changed, files.calibrations, kv)
    if fault:
        raise Uncalibrated(fault, mend="choose thresholds inside the calibrated range, or calibrate at more risk")


def _calibrated(files: BundleFiles, granularity: str) -> bool:
    """Whether there is a calibration of the bundle's exits for this granularity."""
    kv = c.GRANULARITIES[granularity]
    return bool(matching_calibrations(files.manifest, files.policy, files.calibrations, kv))


def _is_tested(files: BundleFiles, chosen: Sequence[Thresholds | None]) -> bool:
    """Whether these are the thresholds of a point of a calibration per token, up to the one that was chosen."""
    kv = c.GRANULARITIES["token"]
    return any(
        point.thresholds == list(chosen)
        for found in matching_calibrations(files.manifest, files.policy, files.calibrations, kv)
        for point in found.path[: (found.chosen or 0) + 1]
    )


def _check_tested(files: BundleFiles, chosen: Sequence[Thresholds | None]) -> None:
    """A token that leaves changes what its neighbours see, so that safer thresholds need not lose less: only points
    that were tested keep the guarantee per token."""
    if not _is_tested(files, chosen):
        raise Uncalibrated(
            "these thresholds were not tested together with exits per token",
            mend="take those of a point of the calibration's path up to the chosen one (`inspect BUNDLE --json`), "
            "close all exits, or use exits per sentence, where every safer threshold is covered",
        )
