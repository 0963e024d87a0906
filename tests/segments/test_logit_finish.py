"""Families that scale, shift or bound their logits: their small heads do so too, wherever these are computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile import contract as c
from eecompile.calibrate.rows import NormalEquations
from eecompile.calibrate.small_heads import HeadMatrix, fit_low_rank, fit_shortlist
from eecompile.runtime import Bundle
from eecompile.runtime.walk import Walk
from eecompile.segments import heads as writer
from eecompile.shapes import HeadShape, PredictorShape
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import Student, open_student
from eecompile.verify import verify_bundle

FAMILIES = {
    "cohere": tiny.config("cohere"),
    "granite": tiny.config("granite"),
    "gemma2": tiny.config("gemma2"),
    "gemma3": tiny.other_variants()["gemma3-new"],
    "phi": tiny.config("phi"),
    "t5": tiny_t5.t5(),
}
TOKENS = [5, 90, 17, 3, 64, 127, 0, 31, 32]
HEADS = [
    HeadShape(name="few", kind="shortlist", tokens=TOKENS),
    HeadShape(name="whole", kind="low_rank", rank=32),
    HeadShape(name="shifted", kind="low_rank", rank=32, bias=True),
]
EXITS = [
    ExitSpec(layer=1, gates=["predictor"], predictor=PredictorShape(head="few", units=4), head="few"),
    ExitSpec(layer=2, gates=["max_prob"], head="whole"),
    ExitSpec(layer=3, gates=["margin"], head="shifted"),
]
ROWS = (2 * np.random.default_rng(3).standard_normal((9, 32))).astype(np.float32)
SHIFT = np.random.default_rng(4).standard_normal(32).astype(np.float32)  # of a row, which "shifted" undoes
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}  # of the largest logit


def student_with_heads(path: Path, family: str) -> Student:
    """Its low-rank heads have full rank: what they stand in for is the whole product."""
    student = open_student(tiny.checkpoint(path, FAMILIES[family], gain=0.4))
    matrix = student.store.read(student.spec.head_weight)
    tensors = tiny.exit_tensors(path, EXITS, heads=HEADS)
    for name in ("whole", "shifted"):
        tensors |= {f"head.{name}.down": np.eye(32, dtype=np.float32), f"head.{name}.up": matrix}
    tensors["head.shifted.bias"] = matrix @ SHIFT
    save_exits(path, EarlyExit(exits=EXITS, heads=HEADS), tensors)
    return open_student(path)


def logits_of(opened: Bundle, name: str, rows: Any) -> Any:
    said = opened.heads(9)[name](rows, logits=True)
    assert said.logits is not None
    return said.logits.copy()


def assert_near(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_small_heads_give_the_full_heads_logits(tmp_path: Path, family: str, precision: str) -> None:
    student = student_with_heads(tmp_path / "s", family)
    opened = tiny.open_bundle(tmp_path / "b", student.path, precision=precision)
    full, tolerance = logits_of(opened, c.FULL_HEAD, ROWS), TOLERANCE[precision]
    product = ROWS @ student.store.read(student.spec.head_weight).T
    assert np.abs(full - product).max() > 0.05 * np.abs(full).max(), "this family leaves the product as it is"
    assert_near(full, ReferenceModel(student.spec, student.store).logits(ROWS), tolerance)
    assert_near(logits_of(opened, "few", ROWS), full[:, TOKENS], tolerance)
    assert_near(logits_of(opened, "whole", ROWS), full, tolerance)
    assert_near(logits_of(opened, "shifted", ROWS - SHIFT), full, 2 * tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_predictors_candidates_are_of_finished_logits(tmp_path: Path, family: str) -> None:
    opened = tiny.open_bundle(tmp_path / "b", student_with_heads(tmp_path / "s", family).path)
    walk = Walk(9)
    said = opened.askers(9)[0](ROWS, walk)
    assert walk.candidates is not None
    assert walk.local is not None
    best = np.take_along_axis(logits_of(opened, "few", said.hidden), walk.candidates, axis=1)
    weights = np.exp(best - best.max(axis=1, keepdims=True))
    np.testing.assert_allclose(walk.local, weights / weights.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_fitted_heads_give_the_models_logits(tmp_path: Path, family: str) -> None:
    student = open_student(tiny.checkpoint(tmp_path / "s", FAMILIES[family]))
    matrix, expected = HeadMatrix.of(student), ReferenceModel(student.spec, student.store).logits(ROWS)
    counts = np.random.default_rng(0).integers(0, 50, tiny.VOCAB)
    short = fit_shortlist(matrix, counts, 40)
    assert_near(short.logits(ROWS), expected[:, short.ids])
    np.testing.assert_array_equal(short.tokens(ROWS), short.ids[expected[:, short.ids].argmax(axis=1)])
    sums, rows = NormalEquations(32), np.random.default_rng(1).standard_normal((400, 32)).astype(np.float32)
    sums.add(rows, rows)
    whole = fit_low_rank(matrix, [(sums, (np.eye(32, dtype=np.float32), SHIFT))], 32)
    assert_near(whole.logits(ROWS), expected, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_wants_small_heads_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    source = student_with_heads(tmp_path / "s", family).path

    def checks(name: str) -> dict[str, bool]:
        path = tiny.bundle_at(tmp_path / name, source, context=64)
        prompts: Any = [list(range(2, 20))]
        report = verify_bundle(path, prompts=prompts, tokens=4)
        return {check.name: check.passed for check in report.checks if check.name.startswith(("head_", "gates_"))}

    names = {"head_few", "head_whole", "head_shifted", "gates_1"}
    assert checks("right") == dict.fromkeys(names, True)
    monkeypatch.setattr(writer, "finish_logits", lambda g, d, product, shortlist=None: product)
    wrong = checks("wrong")
    assert not any(wrong[name] for name in names if name.startswith("head_"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("family", ["gemma2", "phi"])
def test_quantised_heads_are_verified_with_the_checkpoint(tmp_path: Path, family: str, precision: str) -> None:
    source = student_with_heads(tmp_path / "s", family).path
    path = tiny.bundle_at(tmp_path / "b", source, precision=precision, context=64)
    report = verify_bundle(path, checkpoint=source, prompts=[[5, 6, 7, 8, 9]], tokens=4)
    found = {check.name: check.passed for check in report.checks if check.name.startswith("head_")}
    assert found == dict.fromkeys(("head_few", "head_whole", "head_shifted"), True)
