"""Verification of encoder-decoders: what holds passes, another checkpoint's weights do not; and a bench of one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile.bench.bench import run_bench
from eecompile.bench.profile import measure_profile
from eecompile.errors import IntegrityError
from eecompile.verify import verify_bundle
from eecompile.verify.references import read_recorded

SMALL = tiny_t5.newer(num_layers=1, num_decoder_layers=3, scale_decoder_outputs=True)
AT = [1, 2]


@pytest.mark.torch
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_its_checkpoint_passes(shelf: Any, precision: str) -> None:
    opened = shelf.bundle(SMALL, AT, precision=precision, gain=0.3)
    report = verify_bundle(
        opened.files.path, checkpoint=shelf.checkpoint(SMALL, gain=0.3), prompts=tiny_t5.SOURCES[1:3], tokens=12
    )
    assert [(c.name, c.figures) for c in report.checks if not c.passed] == []
    checks = {c.name: c for c in report.checks}
    assert checks["weights"].figures["tensors"] == len(tiny.weights(SMALL))
    assert checks["passes"].figures["rows"] > 500
    assert checks["exact greedy, forced drafts, cap 8"].figures["drafted"] > 0
    assert any("encoder.onnx" in command for command in report.commands)


SPOILT = (
    "encoder.block.0.layer.0.SelfAttention.k.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder.block.1.layer.1.EncDecAttention.v.weight",
)


@pytest.mark.torch
@pytest.mark.parametrize("name", SPOILT)
def test_other_weights_are_seen(shelf: Any, tmp_path: Path, name: str) -> None:
    tensors = tiny.weights(SMALL, gain=0.3)
    other = tiny.checkpoint(tmp_path / "other", SMALL, {**tensors, name: np.roll(tensors[name], 1, axis=0)})
    opened = shelf.bundle(SMALL, AT, gain=0.3)
    report = verify_bundle(opened.files.path, checkpoint=other, prompts=tiny_t5.SOURCES[1:2], tokens=4)
    failed = {c.name for c in report.checks if not c.passed}
    assert {"weights", "checkpoint logits"} <= failed


def test_a_bundle_is_measured(shelf: Any) -> None:
    opened = shelf.bundle(SMALL, AT, gain=0.3, context=64)
    result = run_bench(opened, tiny_t5.SOURCES[:3], max_new_tokens=8, rounds=1, peers=["transformers"])
    full, exact = result.modes["full"], result.modes["exact"]
    assert (full.agreement, full.layer_rows, full.mean_depth) == (1.0, 3.0, 3.0)
    assert exact.equal_tokens == exact.tokens
    assert result.uncut is not None
    assert result.uncut.equal_tokens == full.tokens
    assert "encoder-decoders" in result.skipped["transformers"]


def test_a_profile_has_every_graph_of_a_step(shelf: Any) -> None:
    opened = shelf.bundle(SMALL, AT, gain=0.3, context=64)
    measured = measure_profile(opened, quick=True)["passes"]
    assert isinstance(measured, list)
    assert {p["graph"] for p in measured} == {
        "embed", "head", "exit_0", "exit_1", "segment_0", "segment_1", "segment_2",
    }  # fmt: skip


def test_the_recorded_source_is_checked(shelf: Any, tmp_path: Path) -> None:
    opened = shelf.bundle(SMALL, AT, gain=0.3)
    path = tmp_path / "bundle"
    shutil.copytree(opened.files.path, path)
    ids, source, rows = read_recorded(path, opened.manifest)
    assert source == ids[::-1]
    assert rows.finished.shape == (24, 32)
    np.save(path / "reference" / "source_ids.npy", np.array([tiny.VOCAB], np.int64))
    with pytest.raises(IntegrityError, match="source_ids"):
        read_recorded(path, opened.manifest)
