"""The default policy opens what pays on the profile, closes what does not, says why, and can take it back."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiled import CHOSEN, DECLARED, build_tiny, calibrate, costs_of, profile_of

from eecompile import contract as c
from eecompile.bench import defaults as subject
from eecompile.bench.cost import Simulated, simulate
from eecompile.bench.defaults import EXHAUSTIVE, MARGIN, apply_default_policy, best_subset, choose_policy
from eecompile.bench.profile import measure_profile, write_profile
from eecompile.bundle.manifest import Policy
from eecompile.bundle.policy import change_policy
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.bundle.sign import new_key, sign_bundle
from eecompile.bundle.write import write_overlay
from eecompile.errors import UsageError
from eecompile.runtime import Bundle

DRAFTS = [{"max_prob": 0.3}, {"max_prob": 0.2}]
EARLY = ["aa" * 40, "aa" * 40]  # both exits always fire and are right
LATE = ["ha" * 40]  # only the second does
RARE = ["hhhhhhha" * 10]  # the second one time in four
WRONG = ["xx" * 40]
CHEAP_HEAD = costs_of(embed=0.0, segment_0=10.0, segment_1=10.0, segment_2=10.0, exit_0=0.1, exit_1=0.1, head=0.1)
BATCHED = [
    *CHEAP_HEAD, *({"graph": f"segment_{k}", "rows": 9, "length": 0, "seconds": 11.0} for k in (1, 2)),
]  # fmt: skip
DEAR_HEAD = costs_of(embed=0.0, segment_0=10.0, segment_1=10.0, segment_2=10.0, exit_0=0.1, exit_1=0.1, head=40.0)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("defaults"))


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def calibrated(bundle: Path, **changes: Any) -> BundleFiles:
    calibrate(bundle, **changes)
    return read_bundle(bundle)


def chosen(files: BundleFiles, passes: list[dict[str, Any]]) -> Policy:
    """The default policy on a profile of these passes, which the bundle has to take."""
    policy = choose_policy(files, profile_of(passes))
    write_overlay(files.path, "overlays/policy.json", policy)
    assert read_bundle(files.path).policy.exits == policy.exits
    return policy


def confident(policy: Policy) -> list[Any]:
    return [e.confident for e in policy.exits]


def drafts(policy: Policy) -> list[Any]:
    return [e.draft for e in policy.exits]


def test_an_exit_that_pays_is_opened_at_its_calibrated_thresholds(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=EARLY), CHEAP_HEAD)
    assert confident(policy) == [CHOSEN[0], None]  # the second is never reached and would only cost its question
    assert policy.exits[0].reason.startswith("open in confident mode: the open exits take 0.")
    assert re.match(r"never in confident mode: 0\.\d{3}x .*, 0\.\d{3}x without it;", policy.exits[1].reason)


def test_only_the_exit_that_pays_is_opened(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=LATE), CHEAP_HEAD)
    assert confident(policy) == [None, CHOSEN[1]]


def test_an_exit_that_loses_is_closed_and_the_reason_says_what_it_costs(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=RARE), DEAR_HEAD)
    assert confident(policy) == [None, None]
    assert "never in confident mode: 1.573x the time of full depth on this profile" in policy.exits[0].reason


def test_exits_that_save_less_than_the_margin_stay_closed(bundle: Path) -> None:
    files = calibrated(bundle, traces=["." + "a" + ".." * 19])  # the second exit fires once in twenty tokens
    policy = chosen(files, CHEAP_HEAD)
    assert confident(policy) == [None, None]
    assert f"does not save {MARGIN:.0%}" in policy.exits[1].reason


def test_a_new_profile_opens_again_what_another_had_closed(bundle: Path) -> None:
    files = calibrated(bundle, traces=RARE, draft_traces=RARE, draft=DRAFTS)
    closed = chosen(files, DEAR_HEAD)
    assert confident(closed) == drafts(closed) == [None, None]
    opened = chosen(read_bundle(bundle), CHEAP_HEAD)
    assert confident(opened) == [None, CHOSEN[1]]
    assert drafts(opened) == [None, DRAFTS[1]]


def test_modes_are_chosen_apart(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=LATE, draft_traces=EARLY, draft=DRAFTS), BATCHED)
    assert confident(policy) == [None, CHOSEN[1]]
    assert drafts(policy) == [DRAFTS[0], None]


def test_where_bold_drafts_are_wrong_the_calibrated_thresholds_draft(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=EARLY, draft_traces=WRONG, draft=DRAFTS), BATCHED)
    assert drafts(policy) == [CHOSEN[0], None]
    assert "drafts: the open exits take 0." in policy.exits[0].reason


@pytest.mark.parametrize("drafted", [EARLY, WRONG])
def test_without_a_chosen_point_only_the_bold_drafts_are_judged(bundle: Path, drafted: list[str]) -> None:
    files = calibrated(bundle, traces=[], chosen=None, draft_traces=drafted, draft=DRAFTS)
    assert drafts(chosen(files, BATCHED)) == ([DRAFTS[0], None] if drafted is EARLY else [None, None])


def test_where_all_drafts_are_wrong_none_is_made(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=WRONG, draft_traces=WRONG, draft=DRAFTS), BATCHED)
    assert drafts(policy) == [None, None]
    assert "never drafts: " in policy.exits[0].reason


def test_drafts_that_batch_the_deeper_segments_are_opened(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, draft_traces=EARLY, draft=DRAFTS), BATCHED)
    assert drafts(policy) == [DRAFTS[0], None]
    assert confident(policy) == [None, None]  # no traces: as it was


def test_without_a_calibration_drafts_stay_and_confident_mode_stays_closed(bundle: Path) -> None:
    policy = chosen(read_bundle(bundle), CHEAP_HEAD)
    assert drafts(policy) == DECLARED
    assert confident(policy) == [None, None]
    assert policy.exits[0].reason == (
        "never in confident mode: not calibrated; drafts as given: nothing is known of them without a calibration"
    )


@pytest.mark.parametrize("changes", [{"gates": "0" * 64}, {"precision": "int8"}, {"pending_cap": 4}])
def test_a_calibration_of_something_else_opens_nothing(bundle: Path, changes: dict[str, Any]) -> None:
    files = calibrated(bundle, traces=EARLY, draft_traces=WRONG, draft=DRAFTS, **changes)
    policy = chosen(files, CHEAP_HEAD)
    assert confident(policy) == [None, None]
    assert drafts(policy) == DECLARED


def test_drafts_are_judged_where_no_confident_point_passed(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, chosen=None, draft_traces=WRONG, draft=DRAFTS), CHEAP_HEAD)
    assert drafts(policy) == confident(policy) == [None, None]


@pytest.mark.parametrize("draft", [[], [DRAFTS[0]]])
def test_a_calibration_that_names_no_drafts_means_the_given_ones(bundle: Path, draft: list[Any]) -> None:
    policy = chosen(calibrated(bundle, draft_traces=LATE, draft=draft), CHEAP_HEAD)
    assert drafts(policy) == [None, DECLARED[1]]


def test_an_exit_without_a_threshold_is_no_candidate(bundle: Path) -> None:
    point = {"level": 0.5, "thresholds": [CHOSEN[0], None], "risk": 0.0, "p_value": 0.01, "exit_rate": 0.5}
    policy = chosen(calibrated(bundle, traces=LATE, path=[{**point, "mean_depth": 2.0}]), CHEAP_HEAD)
    assert confident(policy) == [None, None]
    assert policy.exits[1].reason.startswith("never in confident mode: no threshold")


def test_exits_before_the_minimum_depth_are_no_candidates(bundle: Path) -> None:
    change_policy(bundle, thresholds={}, minimum_depth=2)
    policy = chosen(calibrated(bundle, traces=EARLY), CHEAP_HEAD)
    assert confident(policy) == [None, CHOSEN[1]]
    assert policy.exits[0].reason.startswith("never in confident mode: before the minimum depth of 2")
    assert policy.minimum_depth == 2


def test_traces_shorter_than_a_token_are_none(bundle: Path) -> None:
    policy = chosen(calibrated(bundle, traces=["a", ""], draft_traces=["."]), CHEAP_HEAD)
    assert drafts(policy) == DECLARED
    assert "no traces" in policy.exits[0].reason


def test_a_search_over_long_traces_takes_a_sample(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[Simulated] = []

    def spy(*args: Any, **how: Any) -> Simulated:
        replayed.append(simulate(*args, **how))
        return replayed[-1]

    monkeypatch.setattr(subject, "simulate", spy)
    monkeypatch.setattr(subject, "REPLAYED_TOKENS", 4000)
    traces = [*["aa" * 500] * 20, *["hh" * 500] * 20]  # documents from all over: half of the tokens exit
    policy = chosen(calibrated(bundle, traces=traces), CHEAP_HEAD)
    assert "open exits take 0.7" in policy.exits[0].reason
    assert 2000 < sum(found.tokens for found in replayed) <= 4000


def test_a_profile_of_other_graphs_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="segment_2"):
        choose_policy(calibrated(bundle, traces=EARLY), profile_of(costs_of(embed=1.0, segment_0=1.0, segment_1=1.0)))


@pytest.fixture(scope="module")
def files(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    """An open bundle to swap calibrations in."""
    copy = tmp_path_factory.mktemp("files") / "bundle"
    return calibrated(Path(shutil.copytree(pristine, copy)), draft=DRAFTS)


@given(st.lists(st.sampled_from(".hax"), min_size=40, max_size=200).map("".join), st.floats(0, 30), st.floats(0, 5))
def test_never_bolder_than_calibrated_and_never_much_slower(
    files: BundleFiles, letters: str, head: float, ask: float
) -> None:
    traced = files.calibrations[0].model_copy(update={"traces": [letters], "draft_traces": [letters]})
    passes = costs_of(embed=0.0, segment_0=10.0, segment_1=10.0, segment_2=10.0, exit_0=ask, exit_1=ask, head=head)
    policy = choose_policy(replace(files, calibrations=(traced,)), profile_of(passes))
    for e, allowed, draft in zip(policy.exits, CHOSEN, DRAFTS, strict=True):
        assert e.confident in (None, allowed)
        assert e.draft in (None, draft)
        ratios = [float(x) for x in re.findall(r"open exits take (\d+\.\d+)x", e.reason)]
        assert all(ratio <= 1 - MARGIN for ratio in ratios)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5), st.lists(st.floats(-1, 1), min_size=25, max_size=25))
def test_the_search_finds_the_least_of_all_subsets(alone: list[float], pairs: list[float]) -> None:
    def seconds(s: frozenset[int]) -> float:
        return sum(alone[i] for i in s) + sum(pairs[5 * i + j] for i, j in combinations(sorted(s), 2))

    found = best_subset(range(len(alone)), seconds)
    subsets = [frozenset(s) for n in range(len(alone) + 1) for s in combinations(range(len(alone)), n)]
    assert seconds(found) == min(map(seconds, subsets))


def test_beyond_the_exhaustive_search_exits_are_added_one_at_a_time() -> None:
    asked: list[frozenset[int]] = []

    def seconds(s: frozenset[int]) -> float:
        asked.append(s)
        return sum(-1.0 if i % 2 else 1.0 for i in s)

    assert best_subset(range(EXHAUSTIVE + 2), seconds) == frozenset(range(1, EXHAUSTIVE + 2, 2))
    assert len(asked) < 200


def test_end_to_end_on_a_measured_profile(bundle: Path) -> None:
    calibrate(bundle, traces=EARLY, draft_traces=WRONG, draft=DRAFTS)
    with pytest.raises(UsageError, match="no profile"):
        apply_default_policy(bundle)
    write_profile(bundle, measure_profile(Bundle.open(bundle), quick=True))
    policy = apply_default_policy(bundle)
    assert read_bundle(bundle).policy == policy
    assert confident(policy)[0] in (None, CHOSEN[0])  # what pays on this machine is this machine's
    assert drafts(policy)[0] in (None, CHOSEN[0])
    assert all(e.reason for e in policy.exits)
    session = Bundle.open(bundle).session(mode="confident")
    assert len(list(session.generate([3, 4, 5], max_new_tokens=8, stop=()))) == 8


def test_a_signed_bundle_takes_only_a_signed_policy(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    new_key(key)
    write_profile(bundle, measure_profile(Bundle.open(bundle), quick=True))
    sign_bundle(bundle, key)
    with pytest.raises(UsageError, match="signed"):
        apply_default_policy(bundle)
    policy = apply_default_policy(bundle, key)
    assert read_bundle(bundle, key=key).policy == policy


# -- the rule for skipped layers --------------------------------------------------------------------------------

PROPAGATE = costs_of(kv_1=0.2, kv_2=0.2)


@pytest.fixture
def ruled(tmp_path: Path) -> Path:
    """A bundle with the graphs of both rules, calibrated for both."""
    path = build_tiny(tmp_path, kv=("catch_up", "propagate"))
    calibrate(path, traces=EARLY)
    calibrate(path, traces=EARLY, kv="propagate")
    return path


def test_the_faster_of_the_calibrated_rules_is_chosen(ruled: Path) -> None:
    """Passes cost the same whatever their rows, so that catching up is dear here and K/V-only passes are not."""
    policy = chosen(read_bundle(ruled), [*CHEAP_HEAD, *PROPAGATE])
    assert (policy.kv, confident(policy)) == ("propagate", CHOSEN)
    assert all("with propagate" in e.reason for e in policy.exits)
    slow = costs_of(kv_1=300.0, kv_2=300.0)
    policy = chosen(read_bundle(ruled), [*CHEAP_HEAD, *slow])
    assert policy.kv == "catch_up"
    assert any(confident(policy))
    assert not any("propagate" in e.reason for e in policy.exits)


def test_a_token_that_stops_costs_least_and_is_chosen_where_calibrated(tmp_path: Path) -> None:
    path = build_tiny(tmp_path, kv=c.KV_RULES)
    for kv in c.KV_RULES:
        calibrate(path, traces=EARLY, kv=kv)
    policy = chosen(read_bundle(path), [*CHEAP_HEAD, *PROPAGATE])
    assert (policy.kv, confident(policy)) == ("selected", CHOSEN)
    assert all("with selected" in e.reason for e in policy.exits)
    calibrate(path, traces=["hh" * 40], kv="selected")
    assert chosen(read_bundle(path), [*CHEAP_HEAD, *PROPAGATE]).kv == "propagate"


def test_a_rule_that_does_not_pay_leaves_the_exits_closed(ruled: Path) -> None:
    for kv in ("catch_up", "propagate"):
        calibrate(ruled, traces=["hh" * 40], kv=kv)
    policy = chosen(read_bundle(ruled), [*DEAR_HEAD, *PROPAGATE])
    assert (policy.kv, confident(policy)) == ("catch_up", [None, None])


def test_propagate_is_all_of_its_point_or_nothing(ruled: Path) -> None:
    """A minimum depth that closes one of its exits makes it another policy than the tested one."""
    change_policy(ruled, thresholds={1: None, 2: None}, minimum_depth=2)
    policy = chosen(read_bundle(ruled), [*CHEAP_HEAD, *PROPAGATE])
    assert policy.kv == "catch_up"
    assert confident(policy)[0] is None


def test_a_rule_that_is_not_calibrated_is_not_chosen(tmp_path: Path) -> None:
    path = build_tiny(tmp_path, kv=("catch_up", "propagate"))
    calibrate(path, traces=EARLY)
    policy = chosen(read_bundle(path), [*CHEAP_HEAD, *PROPAGATE])
    assert policy.kv == "catch_up"
