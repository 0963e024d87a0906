"""The default policy of a bundle: which exits pay on the profile that was measured, or by the cost model before that.

An exit that is calibrated may still lose time: its head costs more than the layers that it saves, or its drafts are
refused too often. For each mode the open exits are the subset with the least simulated time a token (cost.simulate),
and none is opened unless that saves MARGIN, so that a mode is not slower than full depth. Thresholds are the
calibrated ones, whatever the policy says now: a new profile can open what another had closed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal

from eecompile import contract as c
from eecompile.bench.cost import PassCosts, full_depth_seconds, simulate
from eecompile.bench.device_costs import costs_of_bundle
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.manifest import Calibration, Policy, Profile
from eecompile.bundle.policy import read_for_change
from eecompile.bundle.ranges import calibrated_thresholds, matching_calibrations
from eecompile.bundle.read import BundleFiles
from eecompile.bundle.write import write_overlay
from eecompile.schema import Thresholds
from eecompile.target import Target

MARGIN = 0.03  # of the time at full depth that the open exits have to save; also what a profile is uncertain by
EXHAUSTIVE = 10  # candidates up to which every subset is simulated
REPLAYED_TOKENS = 1 << 19  # by all simulations of a search together, which takes seconds
TYPICAL_LENGTH = 512  # tokens in the cache


@dataclass(frozen=True)
class _Choice:
    """By exit: the thresholds of one mode and why they are these. ratio: the simulated time over full depth's."""

    thresholds: list[Thresholds | None]
    reasons: list[str]
    ratio: float = 1.0
    kv: str = "catch_up"


def choose_policy(files: BundleFiles, profile: Profile) -> Policy:
    """The bundle's policy with the exits open that pay on `profile`; its digest is that of the old one.

    Confident thresholds are those of the matching calibration's chosen point; drafts the ones that the calibration
    traced or that point's, whichever take less time. Without traces there is nothing to judge by, and they stay as they
    are. Each exit's `reason` says why.
    Raises UsageError where the profile is not of this bundle's graphs.
    """
    return choose_by_costs(files, PassCosts.from_profile(profile))


def choose_by_costs(files: BundleFiles, costs: PassCosts) -> Policy:
    """As `choose_policy`, by these costs."""
    confident, drafts = _choose_confident(files, costs), _choose_drafts(files, costs)
    for kv in c.APPROXIMATE:
        other = _try_rule(files, costs, kv)
        if other is not None and other.ratio <= min(confident.ratio, 1 - MARGIN):
            confident = other
    exits = [
        e.model_copy(
            update={
                "confident": confident.thresholds[i],
                "draft": drafts.thresholds[i],
                "reason": f"{confident.reasons[i]}; {drafts.reasons[i]}",
            }
        )
        for i, e in enumerate(files.policy.exits)
    ]
    return files.policy.model_copy(update={"exits": exits, "kv": confident.kv})


def apply_default_policy(bundle: Path, key: Path | None = None, *, target: Target | None = None) -> Policy:
    """Choose by what the bundle's passes cost (device_costs.costs_of_bundle), write the policy and return it.

    key: PEM file of the private key of a signed bundle. target: the bundle's, where that is a file of one's own. Raises
    UsageError where nothing is known of the costs or the key is missing, IntegrityError where the bundle is not intact.
    """
    files = read_for_change(bundle, key)
    policy = choose_by_costs(files, costs_of_bundle(files, target))
    return Policy.model_validate(write_overlay(bundle, c.POLICY, policy, key=key))


def best_subset(candidates: Sequence[int], seconds: Callable[[frozenset[int]], float]) -> frozenset[int]:
    """The subset with the least `seconds`, the smaller of two that tie; above EXHAUSTIVE candidates one is added at a
    time as long as that helps."""
    if len(candidates) <= EXHAUSTIVE:
        sizes = range(len(candidates) + 1)
        return min((frozenset(s) for n in sizes for s in combinations(candidates, n)), key=seconds)
    best: frozenset[int] = frozenset()
    while True:
        found = min((best | {i} for i in candidates), key=seconds)
        if not seconds(found) < seconds(best):
            return best
        best = found


def _choose_confident(files: BundleFiles, costs: PassCosts) -> _Choice:
    count = len(files.manifest.exits)
    matching = matching_calibrations(files.manifest, files.policy, files.calibrations, "catch_up")
    if not matching:
        return _Choice([None] * count, ["never in confident mode: not calibrated"] * count)
    traces = sample_traces(matching[0].traces, count)
    if not traces:
        given = [e.confident if files.policy.kv == "catch_up" else None for e in files.policy.exits]
        return _Choice(given, ["in confident mode as given: the calibration has no traces"] * count)
    return _pick(files, costs, _at_chosen(matching[0]), traces, "confident")


def _try_rule(files: BundleFiles, costs: PassCosts, kv: str) -> _Choice | None:
    """The chosen point of a calibration of an approximate rule, all of it or nothing (ranges.is_tested)."""
    manifest, count = files.manifest, len(files.manifest.exits)
    for found in matching_calibrations(manifest, files.policy, files.calibrations, kv):
        thresholds = _at_chosen(found)
        traces, open_exits = sample_traces(found.traces, count), [i for i, t in enumerate(thresholds) if t is not None]
        if not traces or any(manifest.exits[i].layer < files.policy.minimum_depth for i in open_exits):
            continue
        length = min(TYPICAL_LENGTH, manifest.model.context)
        replayed = simulate(
            manifest, costs, traces, open_exits=open_exits, mode="confident", cap=manifest.pending_cap, length=length,
            kv=kv,
        )  # fmt: skip
        ratio = replayed.seconds_per_token / full_depth_seconds(manifest, costs, length)
        said = f"{_OPEN['confident']} with {kv}: {ratio:.3f}x the time of full depth on {costs.basis}"
        reasons = [said if t is not None else f"{_NEVER['confident']}: no threshold" for t in thresholds]
        return _Choice(thresholds, reasons, ratio, kv)
    return None


def _choose_drafts(files: BundleFiles, costs: PassCosts) -> _Choice:
    given, count = [e.draft for e in files.policy.exits], len(files.manifest.exits)
    gates = gates_digest(files.manifest.exits, files.policy.exits)
    kind = files.manifest.precision, files.manifest.pending_cap, gates
    for found in files.calibrations:  # drafts need no point that passed
        traces = sample_traces(found.draft_traces, count)
        if traces and (found.precision, found.pending_cap, found.gates) == kind and found.cache == files.manifest.cache:
            traced = found.draft if len(found.draft) == count else given
            bold = _pick(files, costs, traced, traces, "exact")
            return min([bold, *_sure_drafts(files, costs, found)], key=lambda choice: choice.ratio)
    return _Choice(given, ["drafts as given: nothing is known of them without a calibration"] * count)


def _sure_drafts(files: BundleFiles, costs: PassCosts, found: Calibration) -> list[_Choice]:
    """Drafts at the thresholds of the calibration's chosen point, where it has one: fewer, but seldom rejected, which
    is what pays where a row more in a pass costs time."""
    traces = sample_traces(found.traces, len(files.manifest.exits))
    if found.chosen is None or found.kv != "catch_up" or not traces:
        return []
    return [_pick(files, costs, _at_chosen(found), traces, "exact")]


def _at_chosen(found: Calibration) -> list[Thresholds | None]:
    return [None if allowed is None else dict(allowed) for allowed in calibrated_thresholds(found)]


def sample_traces(traces: Sequence[str], exits: int) -> list[str]:
    """Documents from all over `traces`, as many tokens as a search of that many exits may replay at a time."""
    letters = exits * (REPLAYED_TOKENS >> min(exits, EXHAUSTIVE))
    used = [t for t in traces if len(t) >= exits > 0]
    stride = -(-sum(map(len, used)) // max(1, letters))
    return [t[:letters] for t in used[:: max(1, stride)]]


def _pick(
    files: BundleFiles, costs: PassCosts, thresholds: Sequence[Thresholds | None], traces: list[str],
    mode: Literal["confident", "exact"],
) -> _Choice:  # fmt: skip
    manifest, depth = files.manifest, files.policy.minimum_depth
    length = min(TYPICAL_LENGTH, manifest.model.context)
    full = full_depth_seconds(manifest, costs, length)

    @cache
    def ratio(open_exits: frozenset[int]) -> float:
        found = simulate(
            manifest, costs, traces, open_exits=open_exits, mode=mode, cap=manifest.pending_cap, length=length,
            patience=[(t or {}).get("patience") for t in thresholds],
        )  # fmt: skip
        return found.seconds_per_token / full

    able = [i for i, t in enumerate(thresholds) if t is not None and "never" not in t]
    candidates = [i for i in able if manifest.exits[i].layer >= depth]
    best = best_subset(candidates, ratio)
    chosen = best if ratio(best) <= 1 - MARGIN else frozenset[int]()
    reasons = []
    for i in range(len(thresholds)):
        if i in chosen or i in candidates:
            reasons.append(_judged(i, chosen, ratio, mode, costs.basis))
        else:
            reasons.append(_NEVER[mode] + (f": before the minimum depth of {depth}" if i in able else ": no threshold"))
    return _Choice([t if i in chosen else None for i, t in enumerate(thresholds)], reasons, ratio(chosen))


_OPEN = {"confident": "open in confident mode", "exact": "drafts"}
_NEVER = {"confident": "never in confident mode", "exact": "never drafts"}


def _judged(
    exit_: int, chosen: frozenset[int], ratio: Callable[[frozenset[int]], float], mode: Literal["confident", "exact"],
    basis: str,
) -> str:  # fmt: skip
    """Why an exit that could be open is, or is not. basis: of the ratios."""
    now = ratio(chosen)
    if exit_ in chosen:
        return f"{_OPEN[mode]}: the open exits take {now:.3f}x the time of full depth on {basis}"
    opened = ratio(chosen | {exit_})
    said = f"{_NEVER[mode]}: {opened:.3f}x the time of full depth on {basis}"
    if chosen:
        return f"{said}, {now:.3f}x without it"
    return said if opened > 1 else f"{said}, which does not save {MARGIN:.0%}"
