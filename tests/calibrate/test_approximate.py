"""Calibrating propagate and selected: tested policies are run as they are deployed, and nothing else is allowed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from eecompile import contract as c
from eecompile.bench.agreement import agreements
from eecompile.bundle.policy import change_policy, permitted_thresholds
from eecompile.bundle.read import read_bundle
from eecompile.calibrate.calibrate import apply_calibration, calibrate_file
from eecompile.calibrate.ltt import betting
from eecompile.cli import main
from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.forced import run_forced
from eecompile.runtime.trace import Tracer
from eecompile.schema import CalibrationResult

RISK, ERROR = 0.3, 0.1
EXITS = [1, 3]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(8)
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    lines = [json.dumps({"ids": rng.integers(0, tiny.VOCAB, int(rng.integers(9, 24))).tolist()}) for _ in range(90)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def pristine(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("approximate") / "bundle"
    return tiny.bundle_at(path, shelf.checkpoint(gain=0.2), EXITS, kv=c.KV_RULES)


@pytest.fixture(scope="module", params=c.APPROXIMATE)
def result(pristine: Path, documents: Path, request: pytest.FixtureRequest) -> CalibrationResult:
    return calibrate_file(Bundle.open(pristine), documents, risk=RISK, error=ERROR, kv=request.param)


@pytest.fixture
def bundle(pristine: Path, result: CalibrationResult, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(pristine, tmp_path / "bundle"))
    apply_calibration(path, result)
    return path


def test_each_point_is_what_a_session_would_lose(bundle: Path, result: CalibrationResult, documents: Path) -> None:
    """The stored loss again, from the policy as it is deployed: a prompt of one token, then the document's own."""
    opened = Bundle.open(bundle)
    assert result.chosen is not None
    assert opened.files.policy.kv == result.kv
    assert result.loss.endswith(result.kv)
    point = result.path[result.chosen]
    assert point.exit_rate > 0.1
    found = run_forced(opened, opened.settings(mode="confident"), (texts := texts_of(opened, documents)), first=1)
    tracer, losses = Tracer(opened, exits=False), []
    for run, ids in zip(found, texts, strict=True):
        losses.append(np.mean(np.asarray(run.tokens) != tracer.trace(ids).final.token[1:]))
    assert len(losses) == result.documents
    assert np.mean(losses) == pytest.approx(point.risk)
    assert point.p_value == pytest.approx(betting(np.array(losses)[:, None], RISK)[0])
    assert point.p_value <= ERROR
    depths = np.concatenate([run.depths for run in found])
    assert point.mean_depth == pytest.approx(depths.mean())
    assert point.exit_rate == pytest.approx((depths < 4).mean())


def texts_of(opened: Bundle, documents: Path) -> list[list[int]]:
    from eecompile.calibrate.documents import load_documents

    stream = load_documents(documents).stream(None, vocab=tiny.VOCAB, context=256, splits=["test"])
    return [document.ids for document in stream]


def test_the_path_is_walked_until_a_policy_fails(result: CalibrationResult) -> None:
    passed = [point.p_value <= ERROR for point in result.path]
    assert result.chosen == sum(passed) - 1
    assert passed == sorted(passed, reverse=True)
    assert len(result.path) <= 12
    assert len({json.dumps(point.thresholds) for point in result.path}) == len(result.path)


def test_letters_retell_the_chosen_point(result: CalibrationResult) -> None:
    assert result.chosen is not None
    point, letters = result.path[result.chosen], "".join(result.traces)
    assert len(letters) == result.tokens * len(EXITS)
    tokens = [letters[i : i + 2] for i in range(0, len(letters), 2)]
    fired = [said for said in tokens if set(said) & {"a", "x"}]
    assert len(fired) / len(tokens) == pytest.approx(point.exit_rate)
    assert all(said[1] == "." for said in tokens if said[0] in "ax")  # who has left is not asked again
    assert {"a", "x"} <= set(letters)


def test_only_tested_policies_are_allowed(bundle: Path, result: CalibrationResult) -> None:
    opened = Bundle.open(bundle)
    assert result.chosen is not None
    opened.session(mode="confident")
    for point in result.path[: result.chosen + 1]:
        opened.session(mode="confident", thresholds=dict(zip(EXITS, point.thresholds, strict=True)))
    for point in result.path[result.chosen + 1 :]:
        with pytest.raises(Uncalibrated, match="tested point"):
            opened.session(mode="confident", thresholds=dict(zip(EXITS, point.thresholds, strict=True)))
    with pytest.raises(Uncalibrated, match="catch_up"):
        opened.session(mode="confident", kv="catch_up")
    allowed = permitted_thresholds(read_bundle(bundle))
    open_exit = next(i for i, a in enumerate(allowed) if a)
    assert all(low == high for low, high in (allowed[open_exit] or {}).values())
    with pytest.raises(UsageError, match="tested point"):
        change_policy(bundle, thresholds={EXITS[open_exit]: {"max_prob": 0.999}})


def test_what_fails_leaves_the_other_rule_as_it_was(pristine: Path, result: CalibrationResult, tmp_path: Path) -> None:
    path = Path(shutil.copytree(pristine, tmp_path / "bundle"))
    tiny.calibrate(path, [{"max_prob": 0.5}, {"max_prob": 0.5}])
    before = read_bundle(path).policy
    apply_calibration(path, result.model_copy(update={"chosen": None, "traces": []}))
    after = read_bundle(path).policy
    assert (after.kv, after.exits) == (before.kv, before.exits)


def test_bench_runs_the_rule_to_know_its_agreement(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    prompt = [3, 1, 4]
    continuation = tiny.tokens(opened, prompt, 40)
    [run] = run_forced(opened, opened.settings(mode="confident"), [[*prompt, *continuation[:-1]]], first=3)
    equal = sum(a == b for a, b in zip(run.tokens, continuation[1:], strict=True))
    assert agreements(opened, [prompt], [continuation])["confident"] == (equal, 39)
    assert equal < 39


def test_the_command_calibrates_a_rule(pristine: Path, documents: Path, tmp_path: Path) -> None:
    path = shutil.copytree(pristine, tmp_path / "bundle")
    options = ["--data", str(documents), "--risk", str(RISK), "--error", str(ERROR), "--limit", "60"]
    for rule in c.APPROXIMATE:
        done = CliRunner().invoke(main, ["calibrate", str(path), *options, "--kv", rule, "--json"])
        assert done.exit_code == 0, done.output
        assert read_bundle(Path(path)).policy.kv == rule
    assert sorted(found.kv for found in read_bundle(Path(path)).calibrations) == ["propagate", "selected"]
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    for rule in c.APPROXIMATE:
        assert f"calibrated for fp32, {rule} by learn-then-test: risk" in shown.output
    for rule in c.APPROXIMATE:
        how = ["--mode", "confident", "--kv", rule, "--max-new-tokens", "5", "--json"]
        done = CliRunner().invoke(main, ["run", str(path), "--prompt-ids", "1,2,3", *how])
        assert done.exit_code == 0, done.output


def test_a_bundle_without_the_graphs_is_refused(shelf: Any, documents: Path) -> None:
    with pytest.raises(UsageError, match="no graphs for propagate"):
        calibrate_file(shelf.bundle(at=EXITS), documents, risk=RISK, error=ERROR, kv="propagate")
