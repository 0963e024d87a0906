"""Verifying classifiers: every task passes, and a bundle that computes something else does not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder as te

from eecompile.bundle.write import BundleWriter
from eecompile.errors import IntegrityError
from eecompile.verify import VerifyReport, verify_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bundle of each task."""
    root = tmp_path_factory.mktemp("verify")
    for task, family in (("sequence", "roberta"), ("tokens", "bert"), ("regression", "distilbert")):
        source = te.checkpoint(root / task, te.config(family, task))
        te.open_bundle(root / f"{task}-bundle", source if task == "regression" else te.add_tokenizer(source), [1, 3])
    return root


def failed(report: VerifyReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


@pytest.mark.parametrize("task", te.TASKS)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_bundle_of_its_checkpoint_passes(place: Path, task: str, checkpoint: bool) -> None:
    report = verify_bundle(place / f"{task}-bundle", checkpoint=place / task if checkpoint else None)
    assert failed(report) == []
    names = [check.name for check in report.checks]
    assert names[:2] == ["hashes", "batch"]
    assert ("checkpoint hidden_0" in names) == checkpoint
    assert {"recorded hidden_1", "recorded hidden_3", "recorded hidden_4", "recorded logits"} <= set(names)
    assert ("compaction per token" in names) == (task == "tokens")
    assert len(report.references) == 1 + checkpoint


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_smaller_precisions_pass(place: Path, tmp_path: Path, precision: str) -> None:
    te.open_bundle(tmp_path / "bundle", place / "tokens", [2], precision=precision)
    assert failed(verify_bundle(tmp_path / "bundle", checkpoint=place / "tokens")) == []


def rebuilt(bundle: Path, out: Path, change: Any) -> Path:
    """The bundle's core, changed and hashed anew."""
    import json

    document = json.loads((bundle / "manifest.json").read_text())
    kept = {k: v for k, v in document.items() if k not in ("format", "version", "files", "digest")}
    with BundleWriter(out) as writer:
        for folder in ("segments", "reference", "tokenizer"):
            if (bundle / folder).exists():
                shutil.copytree(bundle / folder, writer.path / folder)
        change(writer.path)
        writer.commit(kept)
    return out


def test_another_weight_is_found(place: Path, tmp_path: Path) -> None:
    def spoil(root: Path) -> None:
        file = root / "segments" / "segment_1.weights"
        data = np.frombuffer(file.read_bytes(), np.float32).copy()
        data[: 32 * 32] += 0.5
        file.write_bytes(data.tobytes())

    report = verify_bundle(rebuilt(place / "tokens-bundle", tmp_path / "bundle", spoil))
    assert {"recorded hidden_3", "recorded hidden_4", "recorded logits"} <= set(failed(report))
    assert "recorded hidden_1" not in failed(report)


def test_a_record_that_does_not_fit_is_a_fault(place: Path, tmp_path: Path) -> None:
    def spoil(root: Path) -> None:
        np.save(root / "reference" / "token_ids.npy", np.array([5, 999], np.int64))

    with pytest.raises(IntegrityError, match="token ids"):
        verify_bundle(rebuilt(place / "tokens-bundle", tmp_path / "bundle", spoil))


def test_another_checkpoint_is_found(place: Path, tmp_path: Path) -> None:
    other = te.checkpoint(tmp_path / "other", te.config("bert", "tokens"), seed=1)
    assert "checkpoint logits" in failed(verify_bundle(place / "tokens-bundle", checkpoint=other))
    another = tiny.checkpoint(tmp_path / "another", te.config("bert"), te.weights(te.config("bert")))
    assert failed(verify_bundle(place / "tokens-bundle", checkpoint=another)) == ["checkpoint"]


def test_texts_of_the_user(place: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat sat"}\n{"prompt_ids": [2, 5, 3]}\n')
    report = verify_bundle(place / "tokens-bundle", prompts=tmp_path / "texts.jsonl")
    assert failed(report) == []
    assert report.checks[1].figures["texts"] == 2
