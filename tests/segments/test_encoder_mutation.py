"""The parity test can fail: whatever tensor of an encoder is spoilt, the logits differ from the model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder as te


def spoilt(name: str, tensor: Any) -> Any:
    """A norm without its scale, no bias, a matrix with its columns in another order."""
    if name.endswith(".bias"):
        return np.zeros_like(tensor)
    return np.ones_like(tensor) if tensor.ndim == 1 else np.roll(tensor, 3, axis=1)


@pytest.mark.parametrize("task", ["sequence", "tokens"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_every_tensor_counts(tmp_path: Path, family: str, task: str) -> None:
    settings = te.config(family, task, **{("n_layers" if family == "distilbert" else "num_hidden_layers"): 1})
    tensors = te.weights(settings)
    texts = te.random_texts(2, seed=1, longest=30, types=settings.get("type_vocab_size", 0))

    def logits(changed: dict[str, Any]) -> tiny.Float:
        source = tiny.checkpoint(tmp_path / "checkpoint", settings, {**tensors, **changed})
        return te.open_bundle(tmp_path / "bundle", source).classifier().answer(texts).logits

    expected = logits({})
    # a bias of the keys adds the same to every score of a query, which softmax does not see
    unseen = [
        name
        for name, tensor in tensors.items()
        if not name.endswith(("key.bias", "k_lin.bias"))
        and np.abs(logits({name: spoilt(name, tensor)}) - expected).max() < 1e-3
    ]
    assert unseen == []
