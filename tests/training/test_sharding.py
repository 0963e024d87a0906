"""FSDP of `train distill` in two processes on a CPU: what one process comes to, from halves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import distilling
import torch
from distilling import EVERYTHING, tensors
from eecompile_training.config import merge
from eecompile_training.distill import distill
from eecompile_training.distill_config import DistillConfig
from eecompile_training.recurse import RecurseConfig
from eecompile_training.runs import Run
from pydantic import ValidationError
from safetensors.numpy import load_file

pytestmark = pytest.mark.torch
ATTENTION_ALONE = {"task": 0.0, "exits": None, "attention": {"layers": [2]}}  # no gradient from behind layer 2
FULL = merge(EVERYTHING, {"steps": 6, "micro": 1})
CASES: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": {"tune": {"lora": {"rank": 2}, "layers": 3}, "losses": {"last_kl": 1.0}, "steps": 4},
    "detached": {"losses": {"task": 0.0}, "gradient_checkpointing": True, "steps": 4},
    "stages": {
        "steps": 5, "teacher": "other", "tune": {"backbone": False},
        "second": {"steps": 2, "tune": {}, "losses": ATTENTION_ALONE},
    },
}  # fmt: skip
LOW = {"precision": "bf16", "gradient_checkpointing": True, "steps": 3}
MOST = 1e-4  # a step of the optimiser is up to 3e-3


def parsed(root: Path, name: str, changes: dict[str, Any], **more: Any) -> DistillConfig:
    if "teacher" in changes:
        changes = {**changes, "teacher": str(root / "other")}
    return DistillConfig.model_validate(distilling.config(root, **changes, **more, output=str(root / name)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process (one/) and sharded over two (two/); two/moved has stopped half-way."""
    root = tmp_path_factory.mktemp("sharded")
    tiny.checkpoint(root / "other", tiny.config(tie_word_embeddings=True), gain=0.5)
    paths = []
    for folder in ("one", "two"):
        (root / folder).mkdir()
    for name, changes in {**CASES, "low": LOW}.items():
        distill(parsed(root, f"one/{name}", changes))
    for name, changes in {**CASES, "low": LOW, "broken": FULL, "moved": FULL}.items():
        paths.append(root / f"{name}.json")
        paths[-1].write_text(parsed(root, f"two/{name}", changes, fsdp=True).model_dump_json())
    distilling.torchrun(Path(__file__).with_name("sharded_runs.py"), *map(str, paths))
    return root


def assert_near(one: Path, two: Path) -> None:
    ours, theirs = tensors(one / "student"), tensors(two / "student")
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=MOST, err_msg=name)
    for a, b in zip(Run(one).read_metrics(), Run(two).read_metrics(), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_shards_come_to_what_one_process_comes_to(runs: Path, name: str) -> None:
    before = tiny.weights(tiny.config(tie_word_embeddings=True), gain=distilling.GAIN)
    after = tensors(runs / "one" / name / "student")
    assert max(float(np.abs(after[n] - before[n]).max()) for n in before) > 10 * MOST
    assert_near(runs / "one" / name, runs / "two" / name)


def test_bf16_sharded_is_roughly_the_same(runs: Path) -> None:
    one, two = (
        [line["loss"] for line in Run(runs / n / "low").read_metrics() if "loss" in line] for n in ("one", "two")
    )
    assert one == pytest.approx(two, rel=2e-2)


def test_the_adapter_of_a_sharded_run_is_that_of_one_process(runs: Path) -> None:
    ours, theirs = (load_file(runs / n / "lora/adapter/adapter_model.safetensors") for n in ("one", "two"))
    assert set(ours) == set(theirs)
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-4, atol=MOST) for name in ours)


def test_a_sharded_run_goes_on_to_the_same_bits(runs: Path) -> None:
    whole, broken = Run(runs / "two" / "full"), Run(runs / "two" / "broken")
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    ours, theirs = tensors(broken.student), tensors(whole.student)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_sharded_run_goes_on_in_one_process(runs: Path) -> None:
    torch.set_num_threads(1)
    assert not (runs / "two" / "moved" / "student").exists()
    distill(parsed(runs, "two/moved", FULL, fsdp=True), resume=True)
    assert_near(runs / "one" / "full", runs / "two" / "moved")


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_process_holds_its_half(runs: Path, name: str) -> None:
    between = [json.loads((runs / "two" / f"{name}.between-{i}").read_text()) for i in (0, 1)]
    assert between[0].keys() == between[1].keys()
    owners = {key.split(".")[0] for key in between[0]}
    assert owners == {"student", "teacher", "moment"}
    for key, (_, size) in between[0].items():
        assert sum(held[key][0] for held in between) == size, key
    for held in between:
        assert sum(own for own, _ in held.values()) <= 0.55 * sum(size for _, size in held.values())
    forward = json.loads((runs / "two" / f"{name}.forward-0").read_text())
    whole = {key for key, (own, size) in forward.items() if own == size > 1}
    assert whole
    assert not any(".layers." in key or key.startswith("teacher") for key in whole), sorted(whole)


def test_where_there_are_no_shards_it_is_refused_or_changes_nothing(runs: Path) -> None:
    alone, plain = parsed(runs, "alone", CASES["lora"], fsdp=True), runs / "one" / "lora" / "student"
    distill(alone)
    ours, theirs = tensors(runs / "alone" / "student"), tensors(plain)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    given = distilling.config(runs, fsdp=True, schedule={"prelude": 0, "block": 2, "loops": 2})
    with pytest.raises(ValidationError, match="fsdp is for `train distill`"):
        RecurseConfig.model_validate(given)
