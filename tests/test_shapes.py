"""What exits and heads may look like, alone and together, in early_exit.json as in a manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from pydantic import ValidationError
from safetensors.numpy import load_file

from eecompile.bundle.gates import encode_gate, gates_fault
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.errors import UsageError
from eecompile.schema import Task
from eecompile.shapes import ExitShape, HeadShape, PredictorShape, RouterShape, exits_fault, task_fault
from eecompile.student.exits import ExitSpec, load_exits, save_exits
from eecompile.student.student import open_student

FEW = HeadShape(name="few", kind="shortlist", tokens=[1, 2, 3, 4, 5])
THIN = HeadShape(name="thin", kind="low_rank", rank=4, bias=True)
ROUTED: dict[str, Any] = {"gates": ["router"], "router": {"choices": 3}}
PREDICTS: dict[str, Any] = {"gates": ["predictor"], "predictor": {"head": "few", "units": 6}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": ["max_prob"], "router": {"choices": 3}}, "a router without its gate"),
        ({"gates": ["predictor"]}, "belong together"),
        ({"gates": ["max_prob"], "predictor": {"head": "few"}}, "belong together"),
        ({"gates": ["router"], "router": {"choices": 1}}, "greater than or equal to 2"),
        ({"gates": ["router"], "router": {"choices": 3, "units": -1}}, "greater than or equal to 0"),
        ({"gates": ["predictor"], "predictor": {"head": "few", "units": 0}}, "greater than or equal to 1"),
        ({"gates": ["max_prob"], "head": "Few!"}, "match pattern"),
        ({"gates": ["saturation"], "schedule": {"kind": "decay"}}, "neither"),
        ({"gates": ["max_prob"], "schedule": {"kind": "decay", "tau": 0}}, "greater than 0"),
        ({"gates": ["max_prob"], "schedule": {"kind": "daily"}}, "decay"),
        ({"gates": ["margin"], "schedule": {"kind": "adaptive", "zeta": 2}}, "less than or equal to 1"),
        ({"gates": ["margin"], "schedule": {"kind": "adaptive", "points": 1}}, "greater than or equal to 2"),
        ({"gates": ["margin"], "schedule": {"kind": "adaptive", "tau": 4}}, "Extra inputs"),
    ],
)
def test_exits_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExitShape.model_validate({"layer": 1, "adapter": "norm", **change})


@pytest.mark.parametrize(
    "head",
    [
        {"name": "full", "kind": "low_rank", "rank": 4},
        {"name": "a", "kind": "low_rank"},
        {"name": "a", "kind": "low_rank", "rank": 4, "tokens": [1, 2, 3, 4]},
        {"name": "a", "kind": "shortlist", "tokens": [1, 2, 3]},
        {"name": "a", "kind": "shortlist", "tokens": [1, 2, 3, 3]},
        {"name": "a", "kind": "shortlist", "tokens": [1, 2, 3, -4]},
        {"name": "a", "kind": "shortlist", "tokens": [1, 2, 3, 4], "rank": 4},
        {"name": "a", "kind": "shortlist", "tokens": [1, 2, 3, 4], "bias": True},
        {"name": "a", "kind": "magic", "rank": 4},
    ],
)
def test_heads_that_cannot_be(head: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HeadShape.model_validate(head)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([{"gates": ["max_prob"], "head": "fast"}], "asks for the head fast"),
        ([{**PREDICTS, "predictor": {"head": "fast"}}], "asks for the head fast"),
        ([{**PREDICTS, "predictor": {"head": "full"}}], "needs a small head"),
        ([{"gates": ["router"]}], "has no router"),
        ([ROUTED, {"gates": ["router"]}, {"gates": ["router"]}], "exit 3 has no router"),
        ([PREDICTS, {**PREDICTS, "predictor": {"head": "thin"}}], "share a head"),
        ([ROUTED, {"gates": ["router"]}], None),
        ([PREDICTS, {"gates": ["max_prob"], "head": "thin"}, PREDICTS], None),
    ],
)
def test_exits_that_do_not_fit_together(exits: list[dict[str, Any]], message: str | None) -> None:
    shapes = [ExitShape.model_validate({"layer": i, "adapter": "norm", **e}) for i, e in enumerate(exits, 1)]
    reason = exits_fault(shapes, [FEW, THIN])
    assert reason is None if message is None else message in str(reason)


def test_two_heads_of_one_name() -> None:
    assert exits_fault([], [FEW, FEW]) == "two heads have one name"


EXITS = [
    ExitSpec(layer=1, gates=["router", "predictor"], router=RouterShape(choices=3, units=2), head="thin",
             predictor=PredictorShape(head="few", units=6)),
    ExitSpec(layer=2, gates=["router", "patience"], head="few"),
]  # fmt: skip
TENSORS = [
    *(f"exit.1.router.{part}" for part in ("w1", "b1", "w2", "b2")),
    *(f"exit.1.predictor.{part}" for part in ("w1", "b1", "w2", "b2")),
    "head.thin.down", "head.thin.up", "head.thin.bias",
]  # fmt: skip


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return tiny.add_exits(tiny.checkpoint(tmp_path / "student"), EXITS, heads=[FEW, THIN])


def test_the_student_lists_every_tensor(student: Path) -> None:
    assert sorted(load_file(student / "early_exit.safetensors")) == sorted(TENSORS)
    assert open_student(student).exits.schema.heads == [FEW, THIN]


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_missing_misshapen_or_not_finite(student: Path, name: str) -> None:
    tensors = load_file(student / "early_exit.safetensors")
    schema = load_exits(student).schema
    spoilt = {"lacks": None, "has shape": np.ones((3, 7), np.float32), "not finite": tensors[name] * np.float32("nan")}
    for message, value in spoilt.items():
        changed = {k: v for k, v in {**tensors, name: value}.items() if v is not None}
        save_exits(student, schema, changed)
        with pytest.raises(UsageError, match=message):
            open_student(student)


def test_a_shortlist_outside_the_vocabulary(student: Path) -> None:
    schema = load_exits(student).schema
    tokens = FEW.model_copy(update={"tokens": [1, 2, 3, tiny.VOCAB]})
    save_exits(
        student, schema.model_copy(update={"heads": [tokens, THIN]}), load_file(student / "early_exit.safetensors")
    )
    with pytest.raises(UsageError, match=f"token {tiny.VOCAB}"):
        open_student(student)


def weights(*shapes: tuple[int, ...]) -> Any:
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    return encode_gate(*(arrays if len(arrays) == 4 else (None, None, *arrays)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"router": None}, "no router weights"),
        ({"router": weights((32, 5), (5,), (5, 3), (3,))}, "a router of 5 units"),
        ({"router": weights((32, 3), (3,))}, "a router of 0 units"),
        ({"router": weights((32, 2), (2,), (2, 4), (4,))}, "router weights: w2"),
        ({"predictor": weights((12, 6), (6,), (6, 2), (2,))}, "predictor weights: w2"),
        ({"gate": weights((32, 2), (2,), (2, 1), (1,))}, "gate weights of an exit that has no such gate"),
    ],
)
def test_gate_weights_of_a_policy(change: dict[str, Any], message: str | None) -> None:
    info = ExitInfo.model_validate(EXITS[0].model_dump(exclude={"draft", "placement"}))
    own = {
        "router": weights((32, 2), (2,), (2, 3), (3,)), "predictor": weights((12, 6), (6,), (6, 1), (1,)), **change,
    }  # fmt: skip
    reason = gates_fault(ExitPolicy(layer=1, confident=None, draft=None, **own), info, 32)
    assert reason is None if message is None else message in str(reason)


def test_a_linear_router_has_no_first_layer() -> None:
    info = ExitInfo(layer=1, adapter="norm", gates=["router"], router=RouterShape(choices=2))
    linear = weights((32, 2), (2,))
    assert gates_fault(ExitPolicy(layer=1, confident=None, draft=None, router=linear), info, 32) is None
    odd = linear.model_copy(update={"w1": "AAAA"})
    assert "no units" in str(gates_fault(ExitPolicy(layer=1, confident=None, draft=None, router=odd), info, 32))


@pytest.mark.parametrize(
    ("task", "exit_", "heads", "words"),
    [
        ("causal-lm", {"gates": ["delta"]}, [], "the gate delta, which a causal-lm cannot have"),
        ("causal-lm", {"gates": ["max_prob"], "adapter": "classifier"}, [], "a classifier of its own"),
        ("regression", {"gates": ["max_prob"]}, [], "the gate max_prob"),
        ("sequence-classification", {"gates": ["margin", "patience"]}, [], "the gate patience"),
        ("sequence-classification", {"gates": ["saturation"]}, [], "the gate saturation"),
        ("token-classification", {"gates": ["max_prob"], "schedule": {"kind": "decay"}}, [], "schedules"),
        ("token-classification", {"gates": ["max_prob"], "head": "few"}, [FEW], "small heads"),
    ],
)
def test_exits_that_a_task_cannot_have(task: Task, exit_: dict[str, Any], heads: list[HeadShape], words: str) -> None:
    found = ExitShape.model_validate({"layer": 1, "adapter": "norm", **exit_})
    assert words in (task_fault([found], heads, task) or "")


@pytest.mark.parametrize(
    ("task", "gates"),
    [
        ("causal-lm", ["saturation", "patience", "max_prob"]),
        ("token-classification", ["margin", "entropy"]),
        ("regression", ["delta"]),
    ],
)
def test_exits_that_a_task_can_have(task: Task, gates: list[str]) -> None:
    assert task_fault([ExitShape.model_validate({"layer": 1, "adapter": "norm", "gates": gates})], [], task) is None
