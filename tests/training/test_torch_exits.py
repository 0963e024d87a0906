"""The torch twin of exits against the compiled bundle: what heads read, what gates go by, and every kind of head."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import torch
from eecompile_training.backbone import open_backbone
from eecompile_training.exits import new_exits, predictor_features, read_exits, write_exits

from eecompile.runtime.walk import Walk
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import EarlyExit, ExitSpec, load_exits
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch
IDS = np.random.default_rng(3).integers(0, tiny.VOCAB, 40).tolist()
HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=8, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=list(range(2, 60))),
]
EXITS = [
    ExitSpec(
        layer=1, adapter="affine", gates=["predictor", "learned"], gate_units=3, head="few",
        predictor=PredictorShape(head="few", units=5),
    ),
    ExitSpec(
        layer=2, adapter="mlp", gates=["learned", "router", "predictor"], gate_units=3, head="thin",
        router=RouterShape(choices=3, units=4), predictor=PredictorShape(head="few", units=5),
    ),
    ExitSpec(layer=3, adapter="layer", gates=["max_prob", "learned"], gate_units=2),
]  # fmt: skip
FAMILIES = {
    "llama": tiny.config(),
    "gpt2": tiny.gpt2(),
    "gemma2": tiny.config("gemma2"),
    "phi": tiny.config("phi"),
    "olmo2": tiny.config("olmo2"),
    "qwen3": tiny.config("qwen3", head_dim=16, num_key_value_heads=1),
    "cohere": tiny.config("cohere", attention_bias=True),
    "granite": tiny.config("granite", attention_bias=True, mlp_bias=True),
}


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_computes_what_the_bundle_computes(shelf: Any, family: str) -> None:
    source = shelf.checkpoint(FAMILIES[family], EXITS, HEADS, gain=0.35)
    opened = shelf.bundle(FAMILIES[family], exits=EXITS, heads=HEADS, gain=0.35)
    backbone, exits = open_backbone(source).eval(), read_exits(open_student(source))
    from eecompile.runtime.staircase import Staircase

    rows = len(IDS)
    stairs, askers, heads = Staircase(opened.manifest, opened.graphs), opened.askers(rows), opened.heads(rows)
    stairs.watch(askers, range(len(EXITS)))
    stairs.append(IDS)
    walk, candidates, local = Walk(rows), None, None
    with torch.inference_mode():
        states = backbone(torch.tensor([IDS]), at=[1, 2, 3])
        for k, exit_ in enumerate(EXITS):
            hidden = states.hidden[exit_.layer]
            bundle_rows = stairs.run_step(k).copy()
            close(hidden[0], bundle_rows)
            said = askers[k](bundle_rows, walk)
            normed = backbone.norm(hidden)
            ready = exits.ready(exit_, hidden, normed)
            close(ready[0], said.hidden)
            close(torch.sigmoid(exits.learned(exit_, normed))[0], said.confidence)
            head = next((h for h in HEADS if h.name == exit_.head), None)
            logits = (
                backbone.logits(ready)
                if head is None
                else exits.small_logits(head, ready, backbone.head.weight, backbone.head.bias)
            )
            bundle_logits = heads[exit_.head](said.hidden, logits=True).logits
            close(logits[0], bundle_logits)
            if exit_.predictor is not None:
                few = exits.small_logits(HEADS[1], ready, backbone.head.weight, backbone.head.bias)
                features, candidates, local = predictor_features(few, candidates, local)
                close(torch.sigmoid(exits.predictor(exit_, features))[0], said.values["predictor"])
            if exit_.router is not None:
                choices = torch.softmax(exits.router(exit_, hidden), -1)
                assert choices.shape == (1, rows, 3)


def test_what_was_read_is_written_back_to_the_bit(shelf: Any, tmp_path: Path) -> None:
    student = open_student(shelf.checkpoint(None, EXITS, HEADS))
    (tmp_path / "s").mkdir()
    write_exits(tmp_path / "s", read_exits(student))
    again = load_exits(tmp_path / "s")
    assert again.store is not None
    assert student.exits.store is not None
    assert again.schema.exits == student.exits.schema.exits
    assert set(again.store.tensors) == set(student.exits.store.tensors)
    for name in again.store.tensors:
        assert np.array_equal(again.store.read(name), student.exits.store.read(name)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_new_exits_begin_where_the_recipes_begin(shelf: Any, family: str) -> None:
    source = shelf.checkpoint(FAMILIES[family], gain=0.35)
    student = open_student(source)
    backbone, exits = open_backbone(source).eval(), new_exits(EarlyExit(exits=EXITS, heads=HEADS), student)
    with torch.inference_mode():
        states = backbone(torch.tensor([IDS]), at=[1, 2, 3, 4])
        normed = {n: backbone.norm(h) for n, h in states.hidden.items()}
        close(exits.ready(EXITS[0], states.hidden[1], normed[1]), normed[1])
        close(exits.ready(EXITS[2], states.hidden[3], normed[3]), states.finished)
        assert torch.equal(exits.learned(EXITS[0], normed[1]), torch.zeros(1, len(IDS)))


def test_a_low_rank_head_of_full_rank_is_the_head(shelf: Any) -> None:
    source = shelf.checkpoint(tiny.config("cohere"))
    head = HeadShape(name="thin", kind="low_rank", rank=32)
    exit_ = ExitSpec(layer=2, adapter="norm", gates=["max_prob"], head="thin")
    backbone, exits = (
        open_backbone(source).eval(),
        new_exits(EarlyExit(exits=[exit_], heads=[head]), open_student(source)),
    )
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        close(exits.small_logits(head, rows, backbone.head.weight, backbone.head.bias), backbone.logits(rows))
