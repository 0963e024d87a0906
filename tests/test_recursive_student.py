"""A recursive student through every stage: fitted, calibrated, built, verified, profiled, benched and inspected."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from eecompile import contract as c
from eecompile.bench.bench import run_bench
from eecompile.bundle.digest import document_digest, document_layout, file_sha256
from eecompile.bundle.read import read_bundle
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.points import Price
from eecompile.cli import main
from eecompile.errors import IntegrityError
from eecompile.pipeline import build_plain, profile_and_choose
from eecompile.runtime import Bundle
from eecompile.student.exits import load_exits
from eecompile.student.loops import Loops
from eecompile.student.student import open_student
from eecompile.verify import verify_bundle

LOOPS = Loops(prelude=1, block=2, loops=2, rank=2, projections=["q", "v", "down"])
AT = [2, 3]  # inside the block, and after its first loop
FACTORS = "segments/factors_2.weights"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers that runs five."""
    path = tmp_path_factory.mktemp("recursive") / "checkpoint"
    config = tiny.config(num_hidden_layers=3)
    return tiny.add_exits(tiny.checkpoint(path, config, gain=0.25), [], loops=LOOPS, gain=0.25)


@pytest.fixture(scope="module")
def student(source: Path) -> Path:
    """With fitted and calibrated exits."""
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 9, (120, 24)).cumsum(axis=1) + rng.integers(0, 128, (120, 1))) % tiny.VOCAB
    documents = source.parent / "documents.jsonl"
    documents.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
    fit_exits(source, AT, documents, source.parent / "student", risk=0.2, build_bundle=build_plain)
    return source.parent / "student"


@pytest.fixture(scope="module")
def pristine(student: Path) -> Path:
    """Its profiled bundle, which no test may change."""
    path = tiny.bundle_at(student.parent / "bundle", student, precision="fp32")
    profile_and_choose(path)
    return path


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def test_fitting_leaves_the_schedule_and_its_factors(source: Path, student: Path) -> None:
    schema = load_exits(student).schema
    assert schema.schedule == LOOPS
    assert [e.layer for e in schema.exits] == AT
    assert len(schema.calibrations) == 1
    before, after = (open_student(path) for path in (source, student))
    for name in before.spec.shapes():
        np.testing.assert_array_equal(after.store.read(name), before.store.read(name))


def test_every_mode_runs(pristine: Path) -> None:
    opened = Bundle.open(pristine)
    full = tiny.tokens(opened, [5, 6, 7], 24)
    for thresholds in ({n: {"learned": 0.0, "max_prob": 0.0} for n in AT}, {}):
        assert tiny.tokens(opened, [5, 6, 7], 24, mode="exact", thresholds=thresholds) == full
    calibrated = opened.files.calibrations[0]
    assert calibrated.chosen is not None
    allowed = calibrated.path[calibrated.chosen].thresholds
    session = opened.session(mode="confident", thresholds=dict(zip(AT, allowed, strict=True)))
    depths = {token.exit_layer for token in session.generate([5, 6, 7], max_new_tokens=60)}
    assert depths - {5}
    assert depths <= {*AT, 5}


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_verify_passes_against_untied_copies(tmp_path: Path, family: str, precision: str) -> None:
    pytest.importorskip("transformers")
    source = tiny.checkpoint(tmp_path / "checkpoint", tiny.config(family), gain=0.4)
    tiny.add_exits(source, [], loops=LOOPS, gain=0.4)
    path = tiny.bundle_at(tmp_path / "bundle", source, AT, precision=precision)
    report = verify_bundle(path, checkpoint=source, tokens=6)
    assert [check.name for check in report.checks if not check.passed] == []
    assert "hugging face float32" in report.references[1]
    names = {check.name: check for check in report.checks}
    assert names["loops"].figures["factors"] == 2 * 2 * 2 * 3  # parts, loops, layers, projections
    assert names["checkpoint hidden_3"].figures["rows"] > 0


def test_verify_finds_a_factor_of_another_loop(bundle: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    other = bundle / FACTORS.replace("_2", "_4")
    (bundle / FACTORS).write_bytes(other.read_bytes())
    accept(bundle)
    report = verify_bundle(bundle, checkpoint=student, tokens=4)
    wrong = {check.name for check in report.checks if not check.passed}
    assert {"loops", "checkpoint finished", "recorded finished"} <= wrong
    assert "hidden_2" not in " ".join(wrong), "the first loop's first layer is as it was"


def test_bench_and_profile_know_the_segments_by_what_runs_them(pristine: Path) -> None:
    opened = Bundle.open(pristine)
    [profile] = opened.files.profiles
    assert {p.graph for p in profile.passes if p.graph.startswith("segment")} == {f"segment_{k}" for k in range(4)}
    result = run_bench(opened, [[1, 2, 3], [4, 5]], max_new_tokens=12, rounds=1)
    assert result.layers == 5
    assert result.modes["full"].layer_rows == 5
    assert result.modes["full"].mean_depth == 5
    assert result.uncut is not None
    assert result.uncut.equal_tokens == 2 * 11


def test_inspect_shows_the_schedule(pristine: Path) -> None:
    said = CliRunner().invoke(main, ["inspect", str(pristine), "--json"])
    assert said.exit_code == 0
    steps = json.loads(said.stdout)["manifest"]["schedule"]
    assert [(s["segment"], s["cache"], s["exit"]) for s in steps] == [
        (0, 0, None), (1, 1, 0), (2, 2, 1), (1, 3, None), (2, 4, None), (3, 5, None),
    ]  # fmt: skip
    assert CliRunner().invoke(main, ["inspect", str(pristine)]).exit_code == 0


def accept(bundle: Path, **step: Any) -> None:
    """Change step 2 of the schedule and make everything agree with what the files hold now."""
    path = bundle / c.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["schedule"][2].update(step)
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": file_sha256(bundle / name)}
    for file, document in [(path, manifest), *((o, json.loads(o.read_text())) for o in bundle.glob("overlays/*.json"))]:
        if file != path:
            document["core"] = manifest["digest"]
        document["digest"] = document_digest(document)
        file.write_bytes(document_layout(document))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"factors": None}, "do not agree on whether there are factors"),
        ({"factors": "segments/factors_9.weights"}, "factors_9.weights are not a file of 1664 bytes"),
        ({"factors": "segments/head.weights"}, "head.weights are not a file of 1664 bytes"),
        ({"segment": 0, "cache": 2}, "cache 2 and segment 0|do not agree on whether"),
    ],
)
def test_a_schedule_whose_factors_do_not_fit_is_refused(bundle: Path, step: dict[str, Any], message: str) -> None:
    accept(bundle, **step)
    with pytest.raises(IntegrityError, match=message):
        read_bundle(bundle)


def test_factors_of_another_size_are_refused(bundle: Path) -> None:
    (bundle / FACTORS).write_bytes((bundle / FACTORS).read_bytes()[:-4])
    accept(bundle)
    with pytest.raises(IntegrityError, match="are not a file of"):
        read_bundle(bundle)


def test_a_head_is_priced_in_layers_that_run(pristine: Path) -> None:
    """A layer is read each time that it runs, though it is stored once."""
    manifest = Bundle.open(pristine).manifest
    model, price = manifest.model, Price.of(manifest)
    table = model.vocab * model.hidden
    assert price.layers == 5
    assert price.head == pytest.approx(table / ((model.parameters - table) / 3))
