"""`train distill` of encoders: recipes, students that build and say what torch says, texts and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder

pytest.importorskip("torch")

import distilling
import torch
from eecompile_training.backbone import open_encoder_backbone
from eecompile_training.classifier import Classifier
from eecompile_training.classifier_data import ClassBatch, load_class_data
from eecompile_training.config import merge
from eecompile_training.data import IGNORED
from eecompile_training.distill import distill
from eecompile_training.distill_config import DistillConfig
from eecompile_training.exits import read_exits
from eecompile_training.recipes import RECIPES
from eecompile_training.runs import Run
from eecompile_training.settings import DataConfig

from eecompile.calibrate.text_documents import load_text_documents
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec
from eecompile.runtime.trace_texts import TextTracer
from eecompile.student.encoder_student import open_encoder

pytestmark = pytest.mark.torch


def documents(path: Path, task: str, count: int = 60) -> Path:
    """Texts of ids whose first token says the label."""
    rng, lines = np.random.default_rng(0), []
    for i in range(count):
        ids = rng.integers(4, tiny_encoder.VOCAB, int(rng.integers(3, 12))).tolist()
        ids[0] = 4 + i % 3
        labels = {"sequence": {"label": ["bad", "fair", "good"][i % 3]}, "regression": {"label": i % 3 / 2}}
        lines.append({"ids": ids, **labels.get(task, {"labels": [n % 4 for n in ids]})})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(root: Path, family: str = "bert", task: str = "sequence", **changes: Any) -> dict[str, Any]:
    if not (root / "model").exists():
        tiny_encoder.checkpoint(root / "model", tiny_encoder.config(family, task), gain=0.35)
        documents(root / "d.jsonl", task)
    given = distilling.config(root, **changes)
    config = merge(RECIPES.get(changes.get("recipe", ""), {}), given)
    return distill(DistillConfig.model_validate(config))


@pytest.mark.parametrize(
    ("family", "task", "recipe"),
    [
        ("bert", "sequence", "pabee"), ("roberta", "tokens", "deebert"), ("distilbert", "regression", "pabee"),
        ("xlm-roberta", "sequence", "deebert"),
    ],
)  # fmt: skip
def test_recipes_train_students_that_build(tmp_path: Path, family: str, task: str, recipe: str) -> None:
    second = {"second": {"steps": 2}} if recipe == "deebert" else {}
    run(tmp_path, family, task, recipe=recipe, **second, steps=5, layer_dropout={"p_max": 0.2})
    student = tmp_path / "run" / "student"
    module = Classifier(open_encoder_backbone(student), read_exits(open_encoder(student)), None).eval()
    exits = dict(enumerate(module.exits.schema.exits))
    assert [e.layer for e in exits.values()] == [1, 3]
    text = tiny_encoder.encoded([5, 20, 30, 7, 9])
    ids = torch.tensor([text.ids])
    counted = torch.tensor([[task == "tokens" or i == 0 for i in range(len(text.ids))]])
    batch = ClassBatch(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids), counted, torch.zeros(ids.shape))
    with torch.inference_mode():
        last, early = module.logits(batch, exits)
    trace = TextTracer(tiny_encoder.open_bundle(tmp_path / "b", student)).trace([text])
    np.testing.assert_allclose(trace.logits, last, rtol=1e-3, atol=1e-3)
    for i, said in enumerate(trace.exits):
        np.testing.assert_allclose(said.logits, early[i], rtol=1e-3, atol=1e-3)


def test_it_learns_labels_and_exits_agree_more(tmp_path: Path) -> None:
    summary = run(tmp_path, recipe="pabee", steps=60, batch=8, evaluate_every=60, optimizer={"lr": 5e-3})
    metrics = Run(tmp_path / "run").read_metrics()
    assert metrics[58]["last.ce"] < 0.5 * metrics[0]["last.ce"]
    assert summary["exit_1.accuracy"] > 0.8


def test_without_labels_exits_learn_from_the_last_layer(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"ids": line["ids"]}) + "\n" for line in lines))
    with pytest.raises(UsageError, match="no labels"):
        run(tmp_path, recipe="pabee", output=str(tmp_path / "r2"))
    losses = {"task": 0, "exits": {"ce": 0, "kl": 1, "temperature": 2.0}}
    frozen = {"backbone": False}
    run(tmp_path, losses=losses, tune=frozen, exits={"adapter": "classifier"}, steps=40, output=str(tmp_path / "r3"))
    metrics = Run(tmp_path / "r3").read_metrics()
    assert metrics[-2]["loss"] < 0.7 * metrics[0]["loss"]
    before = tiny_encoder.weights(tiny_encoder.config(), gain=0.35)
    after = open_encoder(tmp_path / "r3" / "student").store
    assert all(np.array_equal(before[name], after.read(name)) for name in before)


def test_texts_become_rows_with_the_split_that_calibrate_has(tmp_path: Path) -> None:
    tiny_encoder.checkpoint(tmp_path, tiny_encoder.config(task="tokens"))
    codec = TextCodec(tiny_encoder.add_tokenizer(tmp_path))
    lines = [{"texts": [f"the cat ran on {'dog ' * i}", "a mat"]} for i in range(12)] + [{"text": "the dog sat"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DataConfig(files=[tmp_path / "d.jsonl"], held_out=0.5)
    data = load_class_data(config, codec, open_encoder(tmp_path).spec, 0)
    test = list(load_text_documents(tmp_path / "d.jsonl").stream(["test"]))
    assert len(data.held_out) == sum(len(d.texts) for d in test)
    batch = data.train.batch([0, 1])
    assert not bool(batch.counted[:, 0].any())  # [CLS]
    assert batch.counted.sum(1).tolist() == [int(m.sum()) - 2 for m in batch.mask]
    assert set(batch.targets.flatten().tolist()) == {float(IGNORED)}
    assert not data.train.labelled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exits": {"adapter": "mlp"}}, "exits.adapter mlp is not for an encoder"),
        ({"fsdp": True}, "fsdp is not for an encoder"),
        ({"losses": {"to_final": {}}}, "losses.to_final"),
        ({"exits": {"at": [4]}}, "before the last of 4"),
    ],
)
def test_what_an_encoder_cannot_have_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(tmp_path, **changes)
