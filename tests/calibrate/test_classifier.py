"""Calibrating classifiers: the loss is what the runtime loses, points are tested, fitted exits agree more."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder as te

from eecompile.calibrate.calibrate import apply_calibration
from eecompile.calibrate.classifier import calibrate_classifier
from eecompile.calibrate.classifier_exits import fit_classifier_exits
from eecompile.calibrate.text_documents import load_text_documents
from eecompile.errors import Uncalibrated, UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle
from eecompile.student.encoder_student import open_encoder

AT = [1, 2, 3]
WORDS = te.TEXT.split()[:14]


def write_texts(path: Path, count: int, seed: int = 0, several: bool = False) -> Path:
    """Random documents, all different; several texts each where asked for."""
    chance = random.Random(seed)

    def sentence() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(3, 12)))

    lines = [{"texts": [sentence() for _ in range(3)]} if several else {"text": sentence()} for _ in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and bundles of each task, and documents."""
    root = tmp_path_factory.mktemp("calibrate")
    for task in te.TASKS:
        source = te.add_tokenizer(te.checkpoint(root / task, te.config("bert", task), gain=0.3))
        te.open_bundle(root / f"{task}-bundle", source, AT)
    write_texts(root / "texts.jsonl", 260)
    write_texts(root / "groups.jsonl", 120, several=True)
    return root


def copied(place: Path, task: str, tmp_path: Path) -> Bundle:
    import shutil

    shutil.copytree(place / f"{task}-bundle", tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle", integrity="size")


@pytest.mark.parametrize("task", te.TASKS)
def test_confident_mode_runs_as_it_was_calibrated(place: Path, tmp_path: Path, task: str) -> None:
    opened = copied(place, task, tmp_path)
    tolerance = 0.8 if task == "regression" else None
    result = calibrate_classifier(opened, place / "texts.jsonl", risk=0.2, error=0.1, tolerance=tolerance)
    assert result.chosen is not None
    assert result.kv == "none"
    assert [p.p_value <= 0.1 for p in result.path[: result.chosen + 1]] == [True] * (result.chosen + 1)
    apply_calibration(opened.files.path, result)
    again = Bundle.open(opened.files.path, integrity="size")
    test = [d.texts[0] for d in load_text_documents(place / "texts.jsonl").stream(["test"])]
    assert len(test) == result.documents
    full, early = again.classifier().classify(test), again.classifier("confident").classify(test)
    loss = share_lost(full, early, tolerance or 0.0)
    assert loss <= result.path[result.chosen].risk + 1e-9
    depth = [t.exit_layer for one in early for t in one.tokens or [one]]
    assert np.mean(depth) == pytest.approx(result.path[result.chosen].mean_depth)
    assert np.mean(depth) < 4
    assert again.classifier("confident", minimum_depth=2).classify(test[:5])


def share_lost(full: Any, early: Any, tolerance: float) -> float:
    """Mean over documents of the share of answers that differ."""
    losses = []
    for a, b in zip(full, early, strict=True):
        pairs = list(zip(a.tokens or [a], b.tokens or [b], strict=True))
        wrong = [abs(x.scores[0] - y.scores[0]) > tolerance if tolerance else x.label != y.label for x, y in pairs]
        losses.append(np.mean(wrong))
    return float(np.mean(losses))


def test_per_token_the_loss_is_that_of_running_it(place: Path, tmp_path: Path) -> None:
    opened = copied(place, "tokens", tmp_path)
    result = calibrate_classifier(opened, place / "groups.jsonl", granularity="token", risk=0.3, error=0.1)
    assert (result.kv, result.chosen is not None) == ("propagate", True)
    depths = [p.mean_depth for p in result.path]
    assert depths == sorted(depths, reverse=True) or len(set(depths)) < len(depths)
    apply_calibration(opened.files.path, result)
    again = Bundle.open(opened.files.path, integrity="size")
    one = again.classifier("confident")
    assert one.per_token
    losses = []
    for document in load_text_documents(place / "groups.jsonl").stream(["test"]):
        pairs = [
            x.label == y.label
            for a, b in zip(again.classifier().classify(document.texts), one.classify(document.texts), strict=True)
            for x, y in zip(a.tokens or [], b.tokens or [], strict=True)
        ]
        losses.append(1 - np.mean(pairs))
    assert np.mean(losses) == pytest.approx(result.path[result.chosen or 0].risk)
    with pytest.raises(Uncalibrated, match="exits per sentence"):
        again.classifier("confident", granularity="sentence")


def test_a_calibration_needs_exits_and_documents(place: Path, tmp_path: Path) -> None:
    opened = te.open_bundle(tmp_path / "none", place / "tokens")
    with pytest.raises(UsageError, match="no exits"):
        calibrate_classifier(opened, place / "texts.jsonl")
    few = write_texts(tmp_path / "few.jsonl", 20)
    with pytest.raises(UsageError, match="needs at least 59"):
        calibrate_classifier(copied(place, "tokens", tmp_path), few)
    with pytest.raises(UsageError, match="granularities"):
        calibrate_classifier(Bundle.open(place / "sequence-bundle"), place / "texts.jsonl", granularity="token")
    with pytest.raises(UsageError, match="tolerance is for regressions"):
        calibrate_classifier(Bundle.open(place / "sequence-bundle"), place / "texts.jsonl", tolerance=0.1)


@pytest.mark.parametrize("task", te.TASKS)
def test_fitted_exits_agree_more(place: Path, tmp_path: Path, task: str) -> None:
    summary = fit_classifier_exits(
        place / task, [1, 3], place / "texts.jsonl", tmp_path / "student", risk=0.2, error=0.1, build_bundle=build_plain
    )
    for exit_ in summary["exits"]:
        assert exit_["agreement"] > exit_["plain_agreement"] or exit_["plain_agreement"] == 1
    student = open_encoder(tmp_path / "student")
    assert [e.adapter for e in student.exits.schema.exits] == ["classifier", "classifier"]
    build_plain(student, tmp_path / "bundle")
    opened = Bundle.open(tmp_path / "bundle")
    assert len(opened.files.calibrations) == 1
    if summary["chosen"] is not None:
        assert opened.classifier("confident").classify(["the cat sat"])
    again = {"risk": 0.2, "error": 0.1, "build_bundle": build_plain}
    fit_classifier_exits(place / task, [2], place / "texts.jsonl", tmp_path / "student", **again)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(UsageError, match="something other"):
        fit_classifier_exits(place / task, [2], place / "texts.jsonl", tmp_path / "other", **again)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a document"),
        ("{}", "not one of"),
        ('{"text": "a", "prompt_ids": [1]}', "not one of"),
        ('{"texts": []}', "not a document"),
        ('{"prompt_ids": ["a"]}', "not a document"),
    ],
)
def test_documents_that_are_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UsageError) as fault:
        load_text_documents(path)
    assert words in str(fault.value)
    assert "line 2" in str(fault.value)


def test_documents_are_split_by_content_and_counted_once(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "d.jsonl", 300)
    path.write_text(path.read_text() * 2)
    documents = load_text_documents(path)
    counts = documents.counts()
    assert sum(counts.values()) <= 300 < documents.count
    assert counts["test"] > counts["fit"] > counts["path"] > 0
    assert 80 <= sum(load_text_documents(path, limit=200).counts().values()) <= 100, "each line stands there twice"
    for bad in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UsageError, match="no documents here"):
            load_text_documents(bad)
