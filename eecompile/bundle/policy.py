"""Changing what a bundle's exits do, within what was calibrated, without touching its core."""

import enum
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ValidationError

from eecompile import contract as c
from eecompile.bundle.manifest import Calibration, ExitInfo, ExitPolicy, Manifest, Policy
from eecompile.bundle.ranges import (
    bold_exit,
    calibrated_range,
    calibrated_thresholds,
    confident_fault,
    decodes,
    matching_calibrations,
    policy_fault,
)
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.bundle.strict import validation_summary
from eecompile.bundle.write import write_overlay
from eecompile.errors import UsageError
from eecompile.schema import Criterion

Mode: TypeAlias = Literal["confident", "draft"]
Changes: TypeAlias = Mapping[int, Mapping[Criterion, float] | None]
_HELP: Final = "`eecompile policy BUNDLE show` prints the exits, their gates and what is permitted"


class Keep(enum.Enum):
    """Stands for "leave as it is" where None has a meaning of its own."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


def change_policy(
    bundle: Path,
    *,
    thresholds: Changes,
    mode: Mode = "confident",
    minimum_depth: int | None = None,
    budget: int | Keep | None = KEEP,
    key: Path | None = None,
) -> Policy:
    """Change the thresholds of `mode` and write the policy; return it.

    thresholds: by exit layer, criterion -> threshold; None closes the exit; a gate that is not named keeps its
    threshold, or takes the calibrated one where the exit was closed. minimum_depth: layers every token runs (None:
    as it is). budget: layer-rows a request may spend (None: no limit). key: the private key (PEM) of a signed bundle.
    Raises UsageError, with the permitted range, where the request is outside it; IntegrityError where the bundle is
    not intact or signed by another key.
    """
    files = read_for_change(bundle, key)
    if mode == "draft" and files.manifest.task != c.CAUSAL_LM:
        raise UsageError("a classifier drafts nothing", where=str(bundle), mend="set thresholds of mode confident")
    layers = [e.layer for e in files.manifest.exits]
    if unknown := sorted(set(thresholds) - set(layers)):
        raise UsageError(f"there is no exit after layer {unknown[0]}", where=str(bundle), mend=f"exits are at {layers}")
    exits = [_changed_exit(files, i, thresholds, mode) for i in range(len(layers))]
    fields = {
        **files.policy.model_dump(mode="json"),
        "exits": [e.model_dump(mode="json") for e in exits],
        "minimum_depth": files.policy.minimum_depth if minimum_depth is None else minimum_depth,
        "budget": files.policy.budget if isinstance(budget, Keep) else budget,
    }
    try:
        policy = Policy.model_validate(fields)
    except ValidationError as e:
        raise UsageError(f"no such policy: {validation_summary(e)}", where=str(bundle), mend=_HELP) from e
    _check_permitted(files, policy)
    return Policy.model_validate(write_overlay(files.path, c.POLICY, policy, key=key))


def permitted_thresholds(files: BundleFiles) -> list[dict[Criterion, tuple[float, float]] | None]:
    """For each exit the range of each criterion in confident mode (None: it may not exit); by the first calibration
    that admits the current policy, else the first that matches."""
    calibrations = _calibrations_by_use(files.manifest, files.policy, files.calibrations)
    if not calibrations:
        return [None] * len(files.manifest.exits)
    vocab, fixed = files.manifest.classes, decodes(files.manifest) and files.policy.kv in c.APPROXIMATE
    return [
        None if allowed is None else {k: (v, v) if fixed else calibrated_range(k, v, vocab) for k, v in allowed.items()}
        for allowed in calibrated_thresholds(calibrations[0])
    ]


def adopt_calibration(
    bundle: Path,
    name: str,
    calibration: BaseModel | Mapping[str, object],
    policy: BaseModel | Mapping[str, object],
    *,
    key: Path | None = None,
) -> Policy:
    """Write a calibration and the policy that goes with it; return the policy.

    name: "overlays/calibration-*.json"; one of that name is replaced. The confident exits are closed first, so that a
    kill between the steps leaves a bundle that reads as intact and never exits more boldly than calibrated.
    Raises as `write_overlay`.
    """
    files = read_for_change(bundle, key)
    closed = [e.model_copy(update={"confident": None}) for e in files.policy.exits]
    write_overlay(files.path, c.POLICY, files.policy.model_copy(update={"exits": closed}), key=key)
    write_overlay(files.path, name, calibration, key=key)
    return Policy.model_validate(write_overlay(files.path, c.POLICY, policy, key=key))


def read_for_change(bundle: Path, key: Path | None) -> BundleFiles:
    """Read a bundle that is about to be changed: a signed one needs its private key, an unsigned one takes none.

    Raises UsageError where the key is missing or out of place, IntegrityError where the bundle is not intact.
    """
    signed = os.path.lexists(bundle / (c.MANIFEST + c.SIGNATURE_SUFFIX))
    if signed and key is None:
        mend = "give the private key it was signed with: --key FILE"
        raise UsageError("the bundle is signed, so that a change has to be signed too", where=str(bundle), mend=mend)
    if key is not None and not signed:
        mend = "leave out --key, or sign the bundle first: `eecompile sign BUNDLE --key FILE`"
        raise UsageError("the bundle is not signed", where=str(bundle), mend=mend)
    return read_bundle(bundle, integrity="size", key=key)


def _changed_exit(files: BundleFiles, index: int, changes: Changes, mode: Mode) -> ExitPolicy:
    info, current = files.manifest.exits[index], files.policy.exits[index]
    if info.layer not in changes:
        return current
    change = changes[info.layer]
    if change is None:
        return current.model_copy(update={mode: None})
    known = current.confident if mode == "confident" else current.draft
    merged = {**(_starting_point(files, index) if known is None else known), **change}
    _check_gates_named(info, merged)
    return current.model_copy(update={mode: {k: merged[k] for k in info.gates}})


def _starting_point(files: BundleFiles, index: int) -> Mapping[Criterion, float]:
    for found in matching_calibrations(files.manifest, files.policy, files.calibrations, files.policy.kv):
        if (allowed := calibrated_thresholds(found)[index]) is not None:
            return allowed
    return {}


def _check_gates_named(info: ExitInfo, merged: Mapping[Criterion, float]) -> None:
    if unknown := sorted(set(merged) - set(info.gates)):
        raise UsageError(f"exit {info.layer} has no gate {unknown[0]}; its gates are {info.gates}", mend=_HELP)
    if missing := sorted(set(info.gates) - set(merged)):
        mend = "give a threshold for each of its gates"
        raise UsageError(f"exit {info.layer} is closed and has no calibrated {', '.join(missing)}", mend=mend)


def _check_permitted(files: BundleFiles, policy: Policy) -> None:
    reason = policy_fault(policy, files.manifest)
    if reason is not None:
        raise UsageError(f"not permitted: {reason}", where=str(files.path), mend=_HELP)
    reason = confident_fault(files.manifest, policy, files.calibrations)
    if reason is not None:
        mend = "stay within the range, or calibrate for more risk: `eecompile calibrate`; drafts are free"
        raise UsageError(f"not permitted: {reason}", where=str(files.path), mend=mend)


def _calibrations_by_use(manifest: Manifest, policy: Policy, calibrations: Iterable[Calibration]) -> list[Calibration]:
    rule = policy.kv if decodes(manifest) else None
    matching = matching_calibrations(manifest, policy, calibrations, rule)
    return sorted(matching, key=lambda found: bold_exit(policy.exits, found, manifest.classes) is not None)
