"""Verification sees small heads and cheap gates: it passes what is right and refuses what was spoilt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.runtime import Bundle
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec
from eecompile.verify import verify_bundle

HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=list(range(3, 90, 2))),
]
EXITS = [
    ExitSpec(layer=1, adapter="affine", gates=["router", "predictor"], router=RouterShape(choices=4, units=6),
             predictor=PredictorShape(head="few", units=5), head="few"),
    ExitSpec(layer=2, gates=["saturation", "max_prob"], head="thin"),
    ExitSpec(layer=3, gates=["predictor", "router", "learned", "patience"], gate_units=2,
             predictor=PredictorShape(head="few", units=5)),
]  # fmt: skip
PROMPTS = [list(range(1, 20)), [5, 90, 3, 64, 64, 7]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.checkpoint(tmp_path_factory.mktemp("verify") / "student", gain=0.35)
    return tiny.add_exits(path, EXITS, heads=HEADS)


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_what_is_right_passes(source: Path, tmp_path: Path, precision: str) -> None:
    path = tiny.bundle_at(tmp_path / "b", source, precision=precision)
    report = verify_bundle(path, checkpoint=source, prompts=PROMPTS, tokens=6)
    found = {check.name: check for check in report.checks}
    assert {"head_thin", "head_few", "gates_1", "gates_2", "gates_3"} <= set(found)
    wrong = [c for c in report.checks if not c.passed and c.name.startswith(("head_", "gates_", "exit_"))]
    assert not wrong, wrong
    assert any(name.startswith("exact greedy, forced") and check.passed for name, check in found.items())


def spoil(bundle: Bundle, kind: str) -> Bundle:
    """A gate of the first exit with other weights than its graph is given."""
    chosen = bundle.files.policy.exits[0]
    gate: Any = getattr(chosen, kind)
    from eecompile.bundle.gates import decode_gate, encode_gate

    sizes = bundle.manifest.exits[0].gate_sizes(32)[kind]
    arrays = dict(decode_gate(gate, sizes[0], sizes[2]))
    arrays["w2"] = arrays["w2"] + np.float32(0.5) * np.arange(arrays["w2"].size, dtype=np.float32).reshape(
        arrays["w2"].shape
    )
    changed = chosen.model_copy(update={kind: encode_gate(arrays["w1"], arrays["b1"], arrays["w2"], arrays["b2"])})
    policy = bundle.files.policy.model_copy(update={"exits": [changed, *bundle.files.policy.exits[1:]]})
    from dataclasses import replace

    return replace(bundle, files=replace(bundle.files, policy=policy))


@pytest.mark.parametrize("kind", ["router", "predictor"])
def test_other_gate_weights_are_seen(source: Path, tmp_path: Path, kind: str) -> None:
    from eecompile.verify.gates import check_gates
    from eecompile.verify.parity import walk_both
    from eecompile.verify.rows import Walker

    bundle = tiny.open_bundle(tmp_path / "b", source)
    walks = [walk_both(Walker(bundle), PROMPTS[0])]
    assert all(check.passed for check in check_gates(bundle, walks))
    assert not check_gates(spoil(bundle, kind), walks)[0].passed


def test_a_head_of_another_student_is_seen(source: Path, tmp_path: Path) -> None:
    path = tiny.bundle_at(tmp_path / "b", source)
    other = tiny.add_exits(tiny.checkpoint(tmp_path / "other", gain=0.35), EXITS, seed=1, heads=HEADS)
    report = verify_bundle(path, checkpoint=other, prompts=PROMPTS, tokens=4)
    found = {check.name: check for check in report.checks}
    assert not found["head_thin"].passed
    assert found["head_few"].passed, "its rows are the model's own, which is the same"
