"""What exits are worth, against a model that is asked one token at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import distilling
import torch
from click.testing import CliRunner
from eecompile_training.backbone import open_backbone
from eecompile_training.distill import distill
from eecompile_training.distill_config import DistillConfig
from eecompile_training.exits import read_exits
from eecompile_training.judge import LAST, judge
from torch.nn import functional

from eecompile.cli import main
from eecompile.errors import UsageError
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch
TOKENS = 6


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge")
    distill(DistillConfig.model_validate(distilling.config(root, steps=3)))
    return root / "run" / "student"


def documents(path: Path, lengths: list[int]) -> Path:
    rng = np.random.default_rng(3)
    lines = [json.dumps({"ids": rng.integers(0, tiny.VOCAB, n).tolist()}) for n in lengths]
    path.write_text("\n".join(lines))
    return path


def test_figures_are_those_of_one_token_at_a_time(tmp_path: Path, student: Path) -> None:
    file = documents(tmp_path / "d.jsonl", [5, 12, 9, 30, 2, 16, 11, 8, 21, 7])
    found = judge(student, {"d": file}, tokens=TOKENS)["d"]["exits"]
    backbone, exits = open_backbone(student).eval(), read_exits(open_student(student))
    end = open_student(student).spec.eos
    agree: dict[int, list[bool]] = {e.depth: [] for e in exits.schema.exits}
    losses: list[float] = []
    with torch.inference_mode():
        for line in file.read_text().splitlines():
            document = json.loads(line)["ids"]
            prompt, rest = document[: len(document) // 2], [*document[len(document) // 2 :], *end[:1]][:TOKENS]
            ids = list(prompt)
            for _ in range(TOKENS):
                states = backbone(torch.tensor([ids]), list(agree))
                token = int(backbone.logits(states.finished)[0, -1].argmax())
                for exit_ in exits.schema.exits:
                    hidden = states.hidden[exit_.depth]
                    ready = exits.ready(exit_, hidden, backbone.norm(hidden))
                    agree[exit_.depth].append(int(backbone.logits(ready)[0, -1].argmax()) == token)
                ids.append(token)
                if token in end:
                    break
            whole = torch.tensor([[*prompt, *rest]])
            logits = backbone.logits(backbone(whole).finished)[0, len(prompt) - 1 : -1]
            losses += functional.cross_entropy(logits, torch.tensor(rest), reduction="none").tolist()
    assert found[LAST]["perplexity"] == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-4)
    assert found[LAST]["tokens"] == len(losses)
    for depth, right in agree.items():
        assert found[f"after {depth}"]["agreement"] == pytest.approx(np.mean(right), abs=1e-9)
        assert 0 <= found[f"after {depth}"]["ece"] <= 1


def test_the_command_compares_checkpoints(tmp_path: Path, student: Path) -> None:
    file = documents(tmp_path / "d.jsonl", [12] * 4)
    words = ["train", "judge", str(student), str(student), "--data", f"own={file}", "--documents", "3", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found[str(student)]["own"]["documents"] == 3
    with pytest.raises(UsageError, match="no document has"):
        judge(student, {"d": documents(tmp_path / "short.jsonl", [1, 1])})
