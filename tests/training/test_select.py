"""Smaller students: the layers that were chosen, narrower ones whose lost parts did nothing, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import torch
from eecompile_training.backbone import Backbone, open_backbone, save_backbone
from eecompile_training.data import Rows
from eecompile_training.distill_config import LayersStudent, PrunedStudent
from eecompile_training.select import chosen_layers, new_student

from eecompile.errors import UsageError

pytestmark = pytest.mark.torch
IDS = torch.tensor(np.random.default_rng(3).integers(0, tiny.VOCAB, (2, 20)))
ROWS = Rows([IDS[0].numpy().astype(np.int32)], [np.ones(20, np.bool_)])


def test_which_layers_are_kept() -> None:
    assert chosen_layers(LayersStudent(kind="layers", count=4), 10) == [1, 4, 7, 10]
    assert chosen_layers(LayersStudent(kind="layers", count=3, map="last"), 10) == [8, 9, 10]
    assert chosen_layers(LayersStudent(kind="layers", count=3, map="skip"), 10) == [1, 4, 7]
    assert chosen_layers(LayersStudent(kind="layers", keep=[2, 9]), 10) == [2, 9]
    for wrong in ({"count": 11}, {"keep": [9, 2]}, {"keep": [1, 11]}):
        with pytest.raises(UsageError):
            chosen_layers(LayersStudent(kind="layers", **wrong), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "smollm3", "phi3"])
def test_a_student_of_the_first_layers_has_their_states(shelf: Any, tmp_path: Path, name: str) -> None:
    source = shelf.checkpoint(tiny.variants()[name], gain=0.35)
    whole = open_backbone(source).eval()
    save_backbone(new_student(LayersStudent(kind="layers", keep=[1, 2]), whole.model, ROWS), source, tmp_path / "s")
    student = open_backbone(tmp_path / "s").eval()
    assert student.spec.layers == 2
    with torch.inference_mode():
        ours, theirs = student(IDS, [1, 2]), whole(IDS, [1, 2])
    for n in (1, 2):
        torch.testing.assert_close(ours.hidden[n], theirs.hidden[n])


def idle_parts(backbone: Backbone, units: int, groups: int) -> None:
    """Make so many MLP units and groups of heads of each layer do next to nothing, and look small too."""
    rng, spec = np.random.default_rng(0), backbone.spec
    width = spec.heads // spec.kv_heads * spec.head_dim
    for i in range(spec.layers):
        idle = rng.choice(spec.intermediate, units, replace=False)
        out = {spec.names.down: idle}
        for group in rng.choice(spec.kv_heads, groups, replace=False):
            out[spec.names.o] = np.append(out.get(spec.names.o, []), np.arange(group * width, (group + 1) * width))
        inner = [spec.names.up, *([spec.names.gate] if spec.gated else [])]
        with torch.no_grad():
            for name, columns in out.items():
                backbone.model.get_submodule(name.format(i=i)).weight[:, columns.astype(int)] *= 1e-6
            for name in inner:
                backbone.model.get_submodule(name.format(i=i)).weight[idle] *= 1e-6


@pytest.mark.parametrize("by", ["magnitude", "activation"])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma3", "starcoder2", "llama-every-head-its-keys"])
def test_what_does_nothing_is_pruned_first(shelf: Any, tmp_path: Path, name: str, by: str) -> None:
    source = shelf.checkpoint(tiny.variants()[name], gain=0.35)
    whole = open_backbone(source).eval()
    spec, units, groups = whole.spec, whole.spec.intermediate - 7, max(1, whole.spec.kv_heads // 2)
    idle_parts(whole, 7, spec.kv_heads - groups)
    config = PrunedStudent(kind="prune", intermediate=units, kv_heads=groups, by=by)  # type: ignore[arg-type]
    save_backbone(new_student(config, whole.model, ROWS), source, tmp_path / "s")
    student = open_backbone(tmp_path / "s").eval()
    assert (student.spec.intermediate, student.spec.kv_heads) == (units, groups)
    assert student.spec.head_dim == spec.head_dim
    with torch.inference_mode():
        torch.testing.assert_close(student(IDS).finished, whole(IDS).finished, rtol=1e-3, atol=1e-3)


def test_fused_families_and_impossible_widths_are_refused(shelf: Any) -> None:
    fused = open_backbone(shelf.checkpoint(tiny.gpt2())).model
    with pytest.raises(UsageError, match="fused"):
        new_student(PrunedStudent(kind="prune", intermediate=8), fused, ROWS)
    plain = open_backbone(shelf.checkpoint(tiny.config(num_key_value_heads=4))).model
    with pytest.raises(UsageError, match="divide the hidden size"):
        new_student(PrunedStudent(kind="prune", kv_heads=3, by="magnitude"), plain, ROWS)
    with pytest.raises(UsageError, match="65 units"):
        new_student(PrunedStudent(kind="prune", intermediate=65), open_backbone(shelf.checkpoint()).model, ROWS)
