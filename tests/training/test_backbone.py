"""Boundary states against transformers' own, layer dropout, gradients that stop, and saving."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import torch
from eecompile_training.backbone import open_backbone, save_backbone
from eecompile_training.exits import new_exits, plain_exits, write_exits

from eecompile.student.student import open_student

pytestmark = pytest.mark.torch
IDS = torch.tensor(np.random.default_rng(3).integers(0, tiny.VOCAB, (2, 20)))


@pytest.mark.parametrize("name", sorted(tiny.variants()))
def test_states_and_logits_are_those_of_transformers(shelf: Any, name: str) -> None:
    source = shelf.checkpoint(tiny.variants()[name])
    backbone, oracle = open_backbone(source).eval(), tiny.hugging_face(source)
    with torch.inference_mode():
        states = backbone(IDS, at=[1, 3, 4])
        expected = oracle(IDS, output_hidden_states=True)
        for n in (1, 3):
            assert torch.equal(states.hidden[n], expected.hidden_states[n])
        torch.testing.assert_close(backbone.norm(states.hidden[4]), states.finished)
        torch.testing.assert_close(backbone.logits(states.finished), expected.logits, rtol=1e-4, atol=1e-4)


def test_a_dropped_layer_passes_its_input_on(shelf: Any) -> None:
    backbone = open_backbone(shelf.checkpoint()).eval()
    dropped = torch.zeros(4, 2, dtype=torch.bool)
    dropped[2, 1] = True
    with torch.inference_mode():
        plain, changed = backbone(IDS, at=[2, 3]), backbone(IDS, at=[2, 3], dropped=dropped)
    assert torch.equal(changed.hidden[3][1], changed.hidden[2][1])
    assert torch.equal(changed.finished[0], plain.finished[0])
    assert not torch.equal(changed.finished[1], plain.finished[1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_checkpointing_are_the_same(shelf: Any, checkpointing: bool) -> None:
    found = []
    for on in (False, checkpointing):
        backbone = open_backbone(shelf.checkpoint(), detach_after=None).train()
        if on:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        dropped = torch.tensor([[False, True], [True, False], [False, False], [False, True]])
        states = backbone(IDS, at=[1, 2], dropped=dropped)
        (states.hidden[1].square().mean() + states.hidden[2].sum() + states.finished.square().mean()).backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) > 20
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_passes_where_it_is_to_stop(shelf: Any) -> None:
    backbone = open_backbone(shelf.checkpoint(), detach_after=2)
    backbone(IDS, at=[2]).finished.sum().backward()
    assert all(p.grad is None for p in backbone.layers[:2].parameters())
    states = backbone(IDS, at=[2])
    states.hidden[2].sum().backward()
    assert backbone.layers[0].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "phi3", "gemma3-new", "llama-llama3-new", "olmo3-new"])
def test_a_saved_student_is_what_a_build_takes(shelf: Any, tmp_path: Path, name: str) -> None:
    source = shelf.checkpoint(tiny.variants()[name], gain=0.35)
    backbone = open_backbone(source)
    with torch.no_grad():
        for p in backbone.parameters():
            p.mul_(1.01)
    save_backbone(backbone.model, source, tmp_path / "s")
    write_exits(tmp_path / "s", new_exits(plain_exits([2]), open_student(tmp_path / "s")))
    bundle = tiny.open_bundle(tmp_path / "b", tmp_path / "s")
    ids = IDS[0].tolist()
    assert tiny.tokens(bundle, ids, 8) == tiny.hugging_face_tokens(backbone.model.eval(), ids, 8)
    assert json.loads((tmp_path / "s" / "early_exit.json").read_text())["exits"][0]["layer"] == 2
