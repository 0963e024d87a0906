"""What a policy may say: thresholds in range, and in confident mode none bolder than a matching calibration.

Gates fire above their threshold, `entropy` below its own and so does `delta` (of a regression: how far an exit's value
is from the one before); `fixed` and `never` carry 0. Probabilities go from 0 to 1, `saturation`, a cosine, from -1 to
1, and `patience` counts exits that agree.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.gates import gates_fault
from eecompile.bundle.manifest import Calibration, ExitInfo, ExitPolicy, Manifest, Policy
from eecompile.schema import Criterion, RiskPoint

Limits = tuple[float, float]
BELOW = ("entropy", "delta")  # criteria that fire below their threshold; the others fire above it
MOST_DELTA = 1e30

_PROBABILITY: Limits = (0.0, 1.0)
_RANGES: Mapping[Criterion, Limits] = {
    "learned": _PROBABILITY, "router": _PROBABILITY, "predictor": _PROBABILITY, "saturation": (-1.0, 1.0),
    "max_prob": _PROBABILITY, "margin": _PROBABILITY, "patience": (0.0, float(c.MAX_EXITS)),
    "delta": (0.0, MOST_DELTA), "fixed": (0.0, 0.0), "never": (0.0, 0.0),
}  # fmt: skip


def decodes(manifest: Manifest) -> bool:
    """Whether this is a language model, whose policy says which K/V rule its thresholds are for."""
    return manifest.task == c.CAUSAL_LM


def criterion_range(criterion: Criterion, vocab: int) -> Limits:
    """The lowest and highest threshold that `criterion` can have; entropy in nats over `vocab` tokens."""
    return _RANGES.get(criterion) or (0.0, math.log(vocab))


def calibrated_range(criterion: Criterion, calibrated: float, vocab: int) -> Limits:
    """The thresholds of `criterion` that are not bolder than `calibrated`."""
    low, high = criterion_range(criterion, vocab)
    return (low, calibrated) if criterion in BELOW else (calibrated, high)


def thresholds_fault(thresholds: Mapping[Criterion, float], info: ExitInfo, vocab: int) -> str | None:
    """Why these are no thresholds for this exit, or None: one for each of its gates, each in range."""
    if set(thresholds) != set(info.gates):
        return f"thresholds for {sorted(thresholds)} where the gates are {sorted(info.gates)}"
    for criterion, value in thresholds.items():
        low, high = criterion_range(criterion, vocab)
        if not low <= value <= high:
            return f"{criterion} {value:g} is outside [{low:g}, {high:g}]"
    return None


def policy_fault(policy: Policy, manifest: Manifest) -> str | None:
    """Why `policy` is none for this bundle, calibration aside, or None."""
    model = manifest.model
    if [e.layer for e in policy.exits] != [e.layer for e in manifest.exits]:
        return f"exits at {[e.layer for e in policy.exits]} where the bundle has {[e.layer for e in manifest.exits]}"
    if decodes(manifest) and policy.kv not in manifest.kv_rules:
        return f"the K/V rule {policy.kv}, for which the bundle has no graphs"
    if policy.minimum_depth > model.layers:
        return f"a minimum depth of {policy.minimum_depth} where the model has {model.layers} layers"
    for chosen, info in zip(policy.exits, manifest.exits, strict=True):
        for mode, thresholds in (("confident", chosen.confident), ("draft", chosen.draft)):
            if thresholds is not None and (reason := thresholds_fault(thresholds, info, manifest.classes)):
                return f"exit {info.layer}, {mode}: {reason}"
        if reason := gates_fault(chosen, info, model.hidden):
            return f"exit {info.layer}: {reason}"
    return None


def calibration_fault(calibration: Calibration, manifest: Manifest) -> str | None:
    """Why `calibration` is none for this bundle's exits, or None. It need not match the current gate weights."""
    if calibration.chosen is not None:
        if calibration.chosen >= len(calibration.path):
            return f"point {calibration.chosen} is chosen of {len(calibration.path)}"
        if reason := _unproven(calibration, calibration.path[calibration.chosen]):
            return reason
    for number, point in enumerate(calibration.path):
        if len(point.thresholds) != len(manifest.exits):
            return f"point {number} has {len(point.thresholds)} exits where the bundle has {len(manifest.exits)}"
        for info, thresholds in zip(manifest.exits, point.thresholds, strict=True):
            if thresholds is not None and (reason := thresholds_fault(thresholds, info, manifest.classes)):
                return f"point {number}, exit {info.layer}: {reason}"
    return None


def conformal_bound(documents: int, risk: float) -> float:
    """The mean loss up to which conformal risk control takes a point, of losses of at most 1."""
    return ((documents + 1) * risk - 1) / documents


def _unproven(calibration: Calibration, point: RiskPoint) -> str | None:
    """Why the point does not keep the calibration's guarantee, or None."""
    if calibration.error is None:
        bound = conformal_bound(calibration.documents, calibration.risk)
        return f"the chosen point's mean loss is above {bound:g}" if point.risk > bound else None
    proven = point.p_value is not None and point.p_value <= calibration.error
    return None if proven else f"the chosen point's p-value is above the error of {calibration.error:g}"


def matching_calibrations(
    manifest: Manifest, policy: Policy, calibrations: Iterable[Calibration], kv: str | None = None
) -> list[Calibration]:
    """The calibrations of this precision, pending cap and gates, and of the K/V rule `kv` (None: any of the bundle)."""
    rules = manifest.kv_rules if kv is None else [kv]
    gates = gates_digest(manifest.exits, policy.exits)
    return [
        found
        for found in calibrations
        if (found.precision, found.pending_cap, found.gates) == (manifest.precision, manifest.pending_cap, gates)
        and found.cache == manifest.cache
        and found.kv in rules
        and found.chosen is not None
    ]


def calibrated_thresholds(calibration: Calibration) -> Sequence[Mapping[Criterion, float] | None]:
    """The chosen thresholds of each exit (None: never); empty where nothing was chosen."""
    return [] if calibration.chosen is None else calibration.path[calibration.chosen].thresholds


def bold_exit(exits: Sequence[ExitPolicy], calibration: Calibration, vocab: int) -> str | None:
    """The first confident exit that is bolder than `calibration` allows and what it allows, or None."""
    for chosen, allowed in zip(exits, calibrated_thresholds(calibration), strict=True):
        if chosen.confident is None:
            continue
        if allowed is None:
            return f"exit {chosen.layer} has no calibrated threshold, so that it may not exit in confident mode"
        for criterion, value in chosen.confident.items():
            low, high = calibrated_range(criterion, allowed[criterion], vocab)
            if not low <= value <= high:
                return f"{criterion} {value:.9g} at exit {chosen.layer} is outside [{low:.9g}, {high:.9g}]"
    return None


_ONLY_TESTED = (
    "not the thresholds of a tested point, and with this K/V rule nothing else is calibrated: a token that leaves "
    "changes what later ones see"
)


def is_tested(policy: Policy, calibration: Calibration) -> bool:
    """Whether the policy's confident exits are, all of them, those of a point that passed (c.APPROXIMATE)."""
    if calibration.chosen is None:
        return False
    used = [e.confident if e.layer >= policy.minimum_depth else None for e in policy.exits]
    return any(list(point.thresholds) == used for point in calibration.path[: calibration.chosen + 1])


def confident_fault(
    manifest: Manifest, policy: Policy, calibrations: Iterable[Calibration], kv: str | None = None
) -> str | None:
    """Why confident mode may not run as `policy` says under the K/V rule `kv` (None: the policy's), or None.

    One calibration has to allow all exits together, since its risk is that of their union.
    """
    if all(e.confident is None for e in policy.exits):
        return None
    rule = policy.kv if kv is None and decodes(manifest) else kv
    matching = matching_calibrations(manifest, policy, calibrations, rule)
    if not matching:
        return "confident thresholds without a calibration of this precision, K/V rule, pending cap and gates"
    if decodes(manifest) and rule in c.APPROXIMATE:
        return None if any(is_tested(policy, found) for found in matching) else _ONLY_TESTED
    faults = [bold_exit(policy.exits, found, manifest.classes) for found in matching]
    return None if None in faults else f"bolder than calibrated: {faults[0]}"
