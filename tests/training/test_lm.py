"""`train lm` on a tiny model: rewards, the exits' term by hand, a few steps through trl, and what they leave."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from click.testing import CliRunner

pytest.importorskip("trl")
import torch
from eecompile_training import lm
from eecompile_training.backbone import open_backbone
from eecompile_training.distilled import Distilled
from eecompile_training.exits import read_exits
from eecompile_training.lm import exits_loss, sampled_batch, train_file
from eecompile_training.lm_settings import ExitTerm
from eecompile_training.rewards import exact_match, json_valid, load_reward
from eecompile_training.runs import Run
from processes import killed_after

from eecompile.cli import main
from eecompile.errors import UsageError
from eecompile.student.exits import ExitSpec, load_exits
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch
EXITS = [ExitSpec(layer=n, adapter="affine", gates=["max_prob"]) for n in (1, 3)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "checkpoint"
    tiny.checkpoint(path, tiny.config(vocab_size=tiny.TOKENIZER_IDS), gain=0.3)
    tiny.add_tokenizer(path, eos_token="<|end|>")
    tiny.add_exits(path, EXITS)
    lines = [{"prompt": f"the number {n} is ", "completion": f"{n}"} for n in range(24)]
    (path.parent / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(source: Path, out: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(source), "output": str(out), "data": {"files": [str(source.parent / "prompts.jsonl")]},
        "rewards": ["test_lm:length"], "generations": 4, "batch": 8, "length": 6, "steps": 3,
        "optimizer": {"lr": 1e-3}, "exits": {"weight": 1.0},
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def length(completions: list[str], **others: Any) -> list[float]:
    """A reward of the user's own."""
    return [float(len(text)) for text in completions]


def test_rewards() -> None:
    assert json_valid(['{"a": 1}', "[1]", "3", "{", '{"a": 1} and more', "[" * 100_000]) == [1, 1, 0, 0, 0, 0]
    assert exact_match([" 7\n", "7 apples"], answer=["7", "7"]) == [1, 0]
    assert load_reward("test_lm:length") is length
    for name in ("no_such", "no_such_module:f", "test_lm:nothing", "test_lm:EXITS"):
        with pytest.raises(UsageError, match="reward"):
            load_reward(name)


def test_prompts_padded_on_the_left_become_rows_padded_on_the_right() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[0, 0, 5], [6, 7, 8]]), "prompt_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 3], [4, 9, 9]]), "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }  # fmt: skip
    batch = sampled_batch(inputs)
    assert [row[mask].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)] == [[5, 1, 2, 3], [6, 7, 8, 4]]
    assert [row[row >= 0].tolist() for row in batch.targets] == [[1, 2, 3], [4]]
    assert batch.targets[0, 0] == 1
    assert batch.targets[1, 2] == 4


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_the_exits_term_by_hand(source: Path, kind: Any) -> None:
    module = Distilled(open_backbone(source), read_exits(open_student(source)), None)
    ids, wanted = [5, 9, 2, 77, 31], [2, 77, 31]  # two tokens of prompt, three that were sampled
    inputs = {
        "prompt_ids": torch.tensor([ids[:2]]), "prompt_mask": torch.ones(1, 2, dtype=torch.long),
        "completion_ids": torch.tensor([ids[2:]]), "completion_mask": torch.ones(1, 3, dtype=torch.long),
    }  # fmt: skip
    found = exits_loss(module, sampled_batch(inputs), ExitTerm(kind=kind)).item()
    reference, exits = open_student(source).reference(), load_exits(source)
    boundaries, _, full = reference.run(ids, [1, 3])
    from eecompile.student.reference import normalise

    scale = open_student(source).store.read("model.norm.weight")
    total = 0.0
    for layer in (1, 3):
        normed = normalise(boundaries[layer], "rms", 1e-5, scale)
        ready = normed @ exits.tensor(layer, "adapter.weight") + exits.tensor(layer, "adapter.bias")
        own, last = (logs(z[1:4].astype(np.float64)) for z in (reference.logits(ready), full))
        total += np.mean(np.sum(np.exp(last) * (last - own), 1) if kind == "kl" else -own[range(3), wanted])
    assert found == pytest.approx(total / 2, rel=1e-4)


def logs(z: Any) -> Any:
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


def test_steps_tune_the_model_and_its_exits(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train_file(config(source, tmp_path / "run"))
    assert capsys.readouterr().out == "", "results alone are printed, by the command"
    before, after = (open_student(path) for path in (source, tmp_path / "run" / "student"))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight"):
        assert not np.array_equal(before.store.read(name), after.store.read(name))
    assert after.exits.schema.exits == before.exits.schema.exits
    assert after.exits.schema.provenance["source"] == "eecompile train lm"
    for layer in (1, 3):
        a, b = (s.exits.tensor(layer, "adapter.weight") for s in (before, after))
        assert not np.array_equal(a, b), "the exits are in the loss"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["exits"] > 0 and line["reward"] > 0 for line in lines)
    assert summary["prompts"] > 0
    assert after.spec.eos == before.spec.eos, "special tokens are the checkpoint's own"
    assert not (tmp_path / "run" / "trl").exists()
    tiny.bundle_at(tmp_path / "bundle", tmp_path / "run" / "student", precision="fp32")


class Killed(Exception):
    """In place of a kill."""


def dying(*arguments: Any) -> None:
    raise Killed


def test_a_killed_run_goes_on_to_the_same_bits(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second time through the prompts; a checkpoint cut off; killed again after the last step."""
    changes = {"generations": 2, "batch": 4, "length": 3, "steps": 50, "checkpoint_every": 4, "log_every": 3}
    train_file(config(source, tmp_path / "whole", **changes))
    path, broken = config(source, tmp_path / "broken", **changes), Run(tmp_path / "broken")
    assert killed_after(10, "lm", path, broken)
    newest = max((broken.path / "trl").glob("checkpoint-*/whole"), key=lambda p: lm._step(p.parent)).parent
    assert lm._step(newest) >= 8
    cut_off = shutil.copytree(newest, newest.with_name(f"checkpoint-{lm._step(newest) + 4}"), dirs_exist_ok=True)
    (cut_off / "whole").unlink()
    (cut_off / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(lm, "_finish", dying)
    with pytest.raises(Killed):
        train_file(path, resume=True)
    monkeypatch.undo()
    train_file(path, resume=True)
    for name in ("metrics.jsonl", "student/early_exit.safetensors", "student/model.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_cannot_be_tuned(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no multiple of 4 generations"):
        train_file(config(source, tmp_path / "a", batch=6))
    bare = tiny.checkpoint(tmp_path / "bare")
    with pytest.raises(UsageError, match="no tokenizer"):
        train_file(config(source, tmp_path / "b", model=str(bare)))


def test_several_processes_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UsageError, match="one process, and torchrun started 2"):
        train_file(config(source, tmp_path / "two"))


def test_without_trl_the_command_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "eecompile_training.lm")
    said = CliRunner().invoke(main, ["train", "lm", str(config(source, tmp_path / "run"))])
    assert said.exit_code == 3
    assert "eecompile[train]" in said.stderr
