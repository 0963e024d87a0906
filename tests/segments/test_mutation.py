"""The parity test can fail: whatever tensor of a checkpoint is spoilt, the greedy tokens differ from the model's.

So each tensor is read, from its own name, and put where it belongs; a graph that left one out could not pass parity.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS = [np.random.default_rng(seed).integers(0, tiny.VOCAB, 12).tolist() for seed in range(2)]
NEW = 12
MODELS = {
    "llama": tiny.config(attention_bias=True, mlp_bias=True, num_hidden_layers=2),
    "llama-tied": tiny.config(tie_word_embeddings=True, num_hidden_layers=1, num_key_value_heads=4),
    "mistral": tiny.config("mistral", sliding_window=9, num_hidden_layers=1, num_key_value_heads=1),
    "qwen2": tiny.config("qwen2", head_dim=None, num_hidden_layers=1),
    "qwen3": tiny.config("qwen3", head_dim=16, num_hidden_layers=2),
}


def spoilt(name: str, tensor: Any) -> Any:
    """A norm without its scale, no bias, a matrix with its rows in another order."""
    if name.endswith("norm.weight"):
        return np.ones_like(tensor)
    return np.zeros_like(tensor) if name.endswith(".bias") else np.roll(tensor, 3, axis=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_counts(tmp_path: Path, name: str) -> None:
    settings = MODELS[name]
    tensors = tiny.weights(settings, gain=3.0 if settings["tie_word_embeddings"] else 1.0)
    model = tiny.hugging_face(tiny.checkpoint(tmp_path / "true", settings, tensors))
    expected = [tiny.hugging_face_tokens(model, prompt, NEW) for prompt in PROMPTS]

    def generated(changed: dict[str, Any]) -> list[list[int]]:
        source = tiny.checkpoint(tmp_path / "checkpoint", settings, {**tensors, **changed})
        opened = tiny.open_bundle(tmp_path / "bundle", source, context=64)
        return [tiny.tokens(opened, prompt, NEW) for prompt in PROMPTS]

    assert generated({}) == expected
    unseen = [key for key, tensor in tensors.items() if generated({key: spoilt(key, tensor)}) == expected]
    assert unseen == []
