"""The parity test can fail: whatever weight of a checkpoint is spoilt, the logits are further from the model's than
that test allows.

So each weight is read, from its own name or its own part of a tensor, and put where it belongs; a graph that left one
out could not pass parity.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.runtime.trace import Tracer
from eecompile.student.families import spec_from_config
from eecompile.student.model import DecoderSpec

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPT = np.random.default_rng(0).integers(0, tiny.VOCAB, 24).tolist()
TOLERANCE = 1e-4  # of test_parity.py
MODELS = {
    "llama": tiny.config(attention_bias=True, mlp_bias=True, num_hidden_layers=1),
    "llama-tied": tiny.config(tie_word_embeddings=True, num_hidden_layers=1, num_key_value_heads=4),
    "mistral": tiny.config("mistral", sliding_window=9, num_hidden_layers=1, num_key_value_heads=1),
    "qwen2": tiny.config("qwen2", head_dim=None, num_hidden_layers=1),
    "qwen3": tiny.config("qwen3", head_dim=16, num_hidden_layers=1),
    "gpt2": tiny.gpt2(n_layer=1),
    "gpt_neox": tiny.config("gpt_neox", num_hidden_layers=1),
    "gpt_neox-in-turn": tiny.config("gpt_neox", num_hidden_layers=1, use_parallel_residual=False),
    "phi": tiny.config("phi", num_hidden_layers=1),
    "phi3": tiny.config("phi3", num_hidden_layers=1, num_key_value_heads=2),
    "gemma": tiny.config("gemma", num_hidden_layers=1, attention_bias=True),
    "gemma2": tiny.config("gemma2", num_hidden_layers=1),
    "gemma3": tiny.config("gemma3_text", num_hidden_layers=2),
    "olmo2": tiny.config("olmo2", num_hidden_layers=1, attention_bias=True),
    "olmo3": tiny.config("olmo3", num_hidden_layers=1),
    "granite": tiny.config("granite", num_hidden_layers=1, attention_bias=True, mlp_bias=True),
    "starcoder2": tiny.config("starcoder2", num_hidden_layers=1),
    "stablelm": tiny.config("stablelm", num_hidden_layers=1),
    "stablelm-parallel": tiny.config("stablelm", num_hidden_layers=1, use_parallel_residual=True),
    "cohere": tiny.config("cohere", num_hidden_layers=1),
    "cohere2": tiny.config("cohere2", num_hidden_layers=1),
    "smollm3": tiny.config("smollm3", num_hidden_layers=2, no_rope_layer_interval=2),
}
NEVER_SEEN = {"gpt2": {"transformer.h.0.attn.c_attn.k.bias"}}  # softmax: all scores of a row move alike


def spoilt(name: str, weight: Any) -> Any:
    """A norm without its scale, no bias, a matrix with its rows in another order."""
    if name.endswith(".bias"):
        return np.zeros_like(weight)
    return np.ones_like(weight) if weight.ndim == 1 else np.roll(weight, 3, axis=0)


def with_spoilt(spec: DecoderSpec, tensors: dict[str, Any], name: str) -> dict[str, Any]:
    """The checkpoint with one weight spoilt, which may be a part of a tensor."""
    view = spec.views().get(name)
    if view is None:
        return {**tensors, name: spoilt(name, tensors[name])}
    tensor = tensors[view.tensor].copy()
    outputs = tensor.T if view.transposed else tensor
    where = np.concatenate([np.asarray(run) for run in view.runs])
    outputs[where] = spoilt(name, outputs[where])
    return {**tensors, view.tensor: tensor}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_counts(tmp_path: Path, name: str) -> None:
    settings = MODELS[name]
    spec, tensors = spec_from_config(settings), tiny.weights(settings)
    model = tiny.hugging_face(tiny.checkpoint(tmp_path / "true", settings, tensors))
    _, expected = tiny.hugging_face_states(model, PROMPT)

    def error(changed: dict[str, Any]) -> float:
        source = tiny.checkpoint(tmp_path / "checkpoint", settings, changed)
        opened = tiny.open_bundle(tmp_path / "bundle", source, context=64)
        boundaries = Tracer(opened, boundaries=True).trace(PROMPT).boundaries
        assert boundaries is not None
        return float(np.abs(tiny.head_logits(opened, boundaries[-1]) - expected).max() / np.abs(expected).max())

    assert error(tensors) < TOLERANCE
    errors = {weight: error(with_spoilt(spec, tensors, weight)) for weight in spec.shapes()}
    unseen = {weight for weight, found in errors.items() if found < 10 * TOLERANCE}
    assert unseen == NEVER_SEEN.get(name, set())
