"""A measured profile holds every pass that decoding makes, and lands in the bundle as a valid overlay."""

from __future__ import annotations

from pathlib import Path

import pytest
from profiled import CONTEXT, build_tiny

from eecompile.bench import profile as subject
from eecompile.bench.profile import decode_rows, device_name, measure_profile, write_profile
from eecompile.bundle.manifest import Profile
from eecompile.bundle.read import read_bundle
from eecompile.bundle.sign import new_key, sign_bundle
from eecompile.errors import UsageError
from eecompile.runtime import Bundle


@pytest.fixture(scope="module", params=["fp32", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("profile"), request.param)


@pytest.mark.parametrize("quick", [True, False])
def test_every_pass_of_a_decoding_step_is_measured(bundle: Path, quick: bool) -> None:
    opened, rounds = Bundle.open(bundle), list[str]()
    fields = measure_profile(opened, quick=quick, progress=rounds.append)
    assert rounds[0] == "profile round 1"
    assert len(rounds) >= 3
    profile = Profile.model_validate({**fields, "core": opened.manifest.digest, "digest": "0" * 64})
    found = {(p.graph, p.rows, p.length): p.seconds for p in profile.passes}
    assert len(found) == len(profile.passes)
    assert all(0 < seconds < 1 for seconds in found.values())
    expected = {("embed", 1, 0), ("embed", CONTEXT, 0), ("exit_0", 1, 0), ("exit_1", 1, 0)}
    expected |= {("head", rows, 0) for rows in (1, 2, 3, 5, 9)}
    states = {(rows, n) for rows in (1, 2, 3, 5, 9) for n in (64, CONTEXT)} | {(CONTEXT, CONTEXT)}
    states |= set() if quick else {(32, 64), (32, CONTEXT)}
    embedded = expected | (set() if quick else {("embed", 32, 0)})
    assert set(found) == embedded | {(f"segment_{k}", *state) for k in range(3) for state in states}


def test_so_is_every_pass_of_propagate(tmp_path: Path) -> None:
    opened = Bundle.open(build_tiny(tmp_path, kv=("catch_up", "propagate")))
    profile = Profile.model_validate(
        {**measure_profile(opened, quick=True), "core": opened.manifest.digest, "digest": "0" * 64}
    )
    found = {(p.graph, p.rows, p.length) for p in profile.passes if p.graph.startswith("kv_")}
    assert found == {(f"kv_{k}", rows, n) for k in (1, 2) for rows in (1, 2, 3, 5, 9) for n in (64, CONTEXT)}


def test_a_slow_machine_gets_few_rounds(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(subject, "perf_counter", lambda: float(next(clock)))  # every look at the clock takes a second
    rounds: list[str] = []
    fields = measure_profile(Bundle.open(bundle), quick=True, progress=rounds.append)
    assert len(rounds) == subject.QUICK.least
    assert {p["seconds"] for p in fields["passes"]} == {1.0}  # type: ignore[attr-defined]


def test_measuring_leaves_sessions_alone(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    session = opened.session()
    before = [t.id for t in session.generate([5, 6, 7], max_new_tokens=8, stop=())]
    measure_profile(opened, quick=True)
    assert [t.id for t in session.generate([5, 6, 7], max_new_tokens=8, stop=())] == before


def test_a_profile_is_written_as_an_overlay(bundle: Path) -> None:
    written = write_profile(bundle, measure_profile(Bundle.open(bundle), quick=True))
    assert (bundle / "overlays" / "profile-cpu.json").exists()
    assert read_bundle(bundle).profiles == (written,)
    assert written.device == device_name()
    assert written.threads >= 1


def test_a_signed_bundle_takes_only_a_signed_profile(tmp_path: Path) -> None:
    bundle, key = build_tiny(tmp_path), tmp_path / "key.pem"
    new_key(key)
    sign_bundle(bundle, key)
    fields = measure_profile(Bundle.open(bundle), quick=True)
    with pytest.raises(UsageError, match="signed"):
        write_profile(bundle, fields)
    written = write_profile(bundle, fields, key)
    assert read_bundle(bundle, key=key).profiles == (written,)


def test_the_device_has_a_name_that_the_schema_takes() -> None:
    assert 1 <= len(device_name()) <= 200


@pytest.mark.parametrize(
    ("cap", "rows"),
    [(1, [1, 2]), (2, [1, 2, 3]), (7, [1, 2, 3, 5, 8]), (8, [1, 2, 3, 5, 9]), (63, [1, 2, 3, 5, 9, 17, 33, 64])],
)
def test_rows_cover_every_pending_depth(cap: int, rows: list[int]) -> None:
    assert decode_rows(cap) == rows
