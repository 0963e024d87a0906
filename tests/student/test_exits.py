"""early_exit.json: declared, saved and loaded exits, and every way in which they can be wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from eecompile.errors import UsageError
from eecompile.student.exits import EarlyExit, ExitSpec, declared_exits, load_exits, save_exits
from eecompile.student.student import open_student

DRAFT = {"learned": 0.5, "entropy": 1.0}
FULL = [
    ExitSpec(layer=1, adapter="affine", gates=["learned", "entropy"], gate_units=3, draft=DRAFT),
    ExitSpec(layer=3, gates=["max_prob"]),
]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint with an adapter and a gate at exit 1, and a plain exit 3."""
    return tiny.add_exits(tiny.checkpoint(tmp_path / "student"), FULL)


def edit(folder: Path, change: dict[str, Any], exit_: int | None = None) -> None:
    """Change early_exit.json, or one of its exits."""
    path = folder / "early_exit.json"
    document = json.loads(path.read_text())
    (document if exit_ is None else document["exits"][exit_]).update(change)
    path.write_text(json.dumps(document))


def test_declared_exits_draft_and_do_not_exit() -> None:
    exits = declared_exits([2, 3]).schema.exits
    assert [e.layer for e in exits] == [2, 3]
    assert all(e.gates == ["max_prob"] and e.draft == {"max_prob": 0.9} and e.adapter == "norm" for e in exits)


def test_a_checkpoint_without_exits_has_none(tmp_path: Path) -> None:
    assert open_student(tiny.checkpoint(tmp_path)).exits.schema.exits == []


def test_declaring_replaces_what_the_student_says(student: Path) -> None:
    assert [e.layer for e in open_student(student, [2]).exits.schema.exits] == [2]


def test_saved_exits_load_as_they_were(student: Path) -> None:
    exits = load_exits(student)
    assert exits.schema.exits == FULL
    saved = load_file(student / "early_exit.safetensors")
    np.testing.assert_array_equal(exits.tensor(1, "adapter.weight"), saved["exit.1.adapter.weight"])
    gate = exits.gate(FULL[0])
    assert gate is not None
    assert {part: a.shape for part, a in gate.items()} == {"w1": (32, 3), "b1": (3,), "w2": (3, 1), "b2": (1,)}
    assert exits.gate(FULL[1]) is None


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"exit.1.gate.w1": np.ones((4, 2), np.float32)}
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_exits(folder, EarlyExit(exits=[]), tensors)
    for name in ("early_exit.json", "early_exit.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([3, 1], "not in strictly increasing order"),
        ([2, 2], "not in strictly increasing order"),
        ([4], r"exit 4 is not before the last of 4 layers(.|\n)*1 to 3"),
        ([1, 99], "exit 99"),
        ([0], "exit 0"),
        ([-1], "exit -1"),
        ([5000], "exit 5000"),
    ],
)
def test_impossible_exits_are_refused(tmp_path: Path, at: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_student(tiny.checkpoint(tmp_path), at)


@pytest.mark.parametrize(
    ("exit_", "change"),
    [
        (None, {"version": 2}),
        (None, {"surprise": 1}),
        (None, {"exits": 3}),
        (None, {"weights": "abc"}),
        (0, {"layer": 0}),
        (0, {"layer": 1.5}),
        (0, {"adapter": "magic"}),
        (0, {"gates": []}),
        (0, {"gates": ["learned", "learned"]}),
        (0, {"gates": ["max_prob"]}),
        (0, {"gate_units": 0}),
        (0, {"draft": {"learned": 0.5}}),
        (0, {"draft": {"learned": 0.5, "margin": 0.5}}),
        (0, {"draft": {"learned": float("nan"), "entropy": 1.0}}),
        (1, {"gate_units": 3}),
    ],
)
def test_what_the_schema_does_not_allow(student: Path, exit_: int | None, change: dict[str, Any]) -> None:
    edit(student, change, exit_)
    with pytest.raises(UsageError, match=r"not a valid early_exit\.json") as caught:
        open_student(student)
    assert caught.value.where.endswith("early_exit.json")


@pytest.mark.parametrize(("chosen", "exits"), [(1, 2), (0, 1), (0, 3)])
def test_a_calibration_of_other_exits(student: Path, chosen: int, exits: int) -> None:
    point = {"level": 0.0, "risk": 0.0, "p_value": 0.0, "exit_rate": 0.0, "mean_depth": 4.0}
    found = {
        "precision": "fp32", "kv": "catch_up", "pending_cap": 8, "method": "learn-then-test", "loss": "disagreement",
        "risk": 0.02, "error": 0.05, "documents": 9, "tokens": 99, "data": "0" * 64, "gates": "0" * 64,
        "path": [{**point, "thresholds": [None] * exits}], "chosen": chosen,
    }  # fmt: skip
    edit(student, {"calibrations": [found]})
    with pytest.raises(UsageError, match="a calibration"):
        open_student(student)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_what_is_no_json(student: Path, text: str) -> None:
    (student / "early_exit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"not a valid early_exit\.json"):
        open_student(student)


def test_exits_out_of_order_in_the_file(student: Path) -> None:
    edit(student, {"layer": 1}, 1)
    with pytest.raises(UsageError, match="strictly increasing"):
        open_student(student)


def test_other_weights_than_the_file_names(student: Path) -> None:
    path = student / "early_exit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match="not the ones"):
        open_student(student)


def test_weights_that_are_gone(student: Path) -> None:
    (student / "early_exit.safetensors").unlink()
    with pytest.raises(UsageError, match="missing"):
        open_student(student)


def test_weights_that_are_not_named(student: Path) -> None:
    edit(student, {"weights": None})
    with pytest.raises(UsageError, match="no weights"):
        open_student(student)


def resave(student: Path, **changes: Any) -> None:
    """Replace tensors (None removes) and name the new file."""
    tensors: dict[str, Any] = {**load_file(student / "early_exit.safetensors")}
    for name, value in changes.items():
        tensors["exit.1." + name.replace("_", ".")] = value
    save_exits(student, load_exits(student).schema, {n: t for n, t in tensors.items() if t is not None})


def test_a_tensor_that_is_missing(student: Path) -> None:
    resave(student, gate_b2=None)
    with pytest.raises(UsageError, match=r"lacks exit\.1\.gate\.b2"):
        open_student(student)


def test_a_tensor_of_the_wrong_shape(student: Path) -> None:
    resave(student, gate_w1=np.ones((3, 32), np.float32))
    with pytest.raises(UsageError, match=r"exit\.1\.gate\.w1 has shape \[3, 32\]"):
        open_student(student)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite(student: Path, value: float) -> None:
    resave(student, adapter_bias=np.full(32, value, np.float32))
    with pytest.raises(UsageError, match=r"exit\.1\.adapter\.bias is not finite"):
        open_student(student)


def test_exits_of_another_model(tmp_path: Path, student: Path) -> None:
    wide = tiny.checkpoint(tmp_path / "wide", tiny.config(hidden_size=64, head_dim=16))
    for name in ("early_exit.json", "early_exit.safetensors"):
        (wide / name).write_bytes((student / name).read_bytes())
    with pytest.raises(UsageError, match=r"shape \[32, 32\], .* \[64, 64\]"):
        open_student(wide)


def test_half_precision_tensors_are_read(student: Path) -> None:
    tensors = load_file(student / "early_exit.safetensors")
    path = student / "early_exit.safetensors"
    save_file({n: t.astype(np.float16) for n, t in tensors.items()}, path)
    import hashlib

    edit(student, {"weights": hashlib.sha256(path.read_bytes()).hexdigest()})
    exits = open_student(student).exits
    expected = tensors["exit.1.gate.w1"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(exits.tensor(1, "gate.w1"), expected)
