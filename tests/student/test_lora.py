"""Merged adapters against the peft library, and adapters that cannot be merged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import cli, cli_json

from eecompile.errors import UsageError
from eecompile.student.lora import CONFIG, WEIGHTS, merge_lora
from eecompile.student.store import WeightStore

TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def adapter_of(folder: Path, checkpoint: Path, targets: list[str] = TARGETS, **more: Any) -> Any:
    """A random LoRA adapter, saved by peft; returns the model with it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **more)
    model = peft.get_peft_model(base, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 5, 9, 2]])).logits.numpy()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "checkpoint")


@pytest.mark.torch
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}])
def test_a_merged_checkpoint_is_the_adapted_model(checkpoint: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    import transformers

    model = adapter_of(tmp_path / "adapter", checkpoint, **more)
    said = cli_json("merge", checkpoint, tmp_path / "adapter", "-o", tmp_path / "merged")
    assert said["merged"] == len(TARGETS) * model.config.num_hidden_layers
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = logits(model)
    np.testing.assert_allclose(logits(merged), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(logits(plain) - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.torch
def test_matrices_that_a_family_stores_transposed(tmp_path: Path) -> None:
    import transformers

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "checkpoint")
    model = adapter_of(tmp_path / "adapter", tmp_path / "checkpoint", ["c_attn", "c_fc"], fan_in_fan_out=True)
    merge_lora(tmp_path / "checkpoint", tmp_path / "adapter", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits(merged), logits(model), rtol=0, atol=1e-5)


@pytest.mark.torch
def test_what_is_not_merged_stays_to_the_bit_and_exits_come_along(checkpoint: Path, tmp_path: Path) -> None:
    adapter_of(tmp_path / "adapter", checkpoint, ["q_proj"])
    (tmp_path / "adapter" / "early_exit.json").write_text('{"version": 1, "exits": []}')
    merged = merge_lora(checkpoint, tmp_path / "adapter", tmp_path / "merged")
    before, after = WeightStore.open(checkpoint), WeightStore.open(tmp_path / "merged")
    changed = {n for n in before.tensors if not np.array_equal(before.read(n), after.read(n))}
    assert changed == set(merged)
    assert all(name.endswith("q_proj.weight") for name in merged)
    assert json.loads((tmp_path / "merged" / "early_exit.json").read_text())["exits"] == []
    cli("build", tmp_path / "merged", "-o", tmp_path / "bundle", "--exits", "2", "--no-profile")


def written(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}))
    save_file({f"base_model.model.{n}": np.asarray(t, np.float32) for n, t in tensors.items()}, folder / WEIGHTS)
    return folder


GOOD = {"m.lora_A.weight": np.ones((2, 8)), "m.lora_B.weight": np.ones((8, 2))}


@pytest.mark.parametrize(
    ("config", "tensors", "reason"),
    [
        ({"use_dora": True}, GOOD, "use_dora"),
        ({"bias": "all"}, GOOD, "bias"),
        ({"modules_to_save": ["lm_head"]}, GOOD, "modules_to_save"),
        ({"peft_type": "IA3"}, GOOD, "peft_type"),
        ({"r": 0}, GOOD, "r"),
        ({}, GOOD, "does not have"),
        ({}, {"m.lora_A.weight": np.ones((2, 8))}, "half"),
        ({}, {**GOOD, "m.weight": np.ones(3)}, "half"),
        ({"r": 3}, GOOD, "rank 3"),
        ({}, {"model.norm.lora_A.weight": np.ones((2, 8)), "model.norm.lora_B.weight": np.ones((8, 2))}, "not have"),
    ],
)
def test_adapters_that_cannot_be_merged(
    checkpoint: Path, tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], reason: str
) -> None:
    adapter = written(tmp_path / "adapter", config, tensors)
    with pytest.raises(UsageError, match=reason):
        merge_lora(checkpoint, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_factors_that_are_not_finite_and_an_output_in_use(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    out, size = WeightStore.open(checkpoint).shape(f"{name}.weight")
    tensors = {f"{name}.lora_A.weight": np.full((2, size), np.nan), f"{name}.lora_B.weight": np.ones((out, 2))}
    adapter = written(tmp_path / "adapter", {}, tensors)
    with pytest.raises(UsageError, match="not finite"):
        merge_lora(checkpoint, adapter, tmp_path / "merged")
    cli("merge", checkpoint, tmp_path / "nothing", "-o", tmp_path / "merged", status=2)
    cli("merge", checkpoint, adapter, "-o", checkpoint, status=2)
