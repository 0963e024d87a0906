"""Encoder-decoders are the model: boundaries, logits and greedy tokens against transformers in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5
from test_mutation import spoilt

from eecompile.runtime import Bundle
from eecompile.runtime.heads import Head
from eecompile.runtime.trace import Tracer

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("transformers")

EXITS = [1, 3]
NEW = 24
TARGET = np.random.default_rng(7).integers(0, tiny.VOCAB, 150).tolist()  # longer than a pass, and than any distance


def assert_parity(opened: Bundle, model: Any) -> None:
    """Tokens for every source; hidden states at each exit, finished rows and logits of a long target."""
    for source in tiny_t5.SOURCES:
        assert tiny.tokens(opened, source, NEW, stop=()) == tiny_t5.tokens(model, source, NEW)
        states, expected = tiny_t5.states(model, source, TARGET)
        boundaries = Tracer(opened, boundaries=True).trace(TARGET, source).boundaries
        assert boundaries is not None
        for rows, layer in zip(boundaries, [*EXITS, len(states) - 1], strict=True):
            assert rows.shape == states[layer].shape
            assert np.abs(rows - states[layer]).max() < 1e-4 * np.abs(states[layer]).max()
        model_ = opened.manifest.model
        head = Head(opened.graphs.head, model_.hidden, model_.vocab, len(TARGET), opened.manifest.minimum_rows)
        logits = head(boundaries[-1], logits=True).logits
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", tiny_t5.variants())
def test_every_kind_of_model(shelf: Any, name: str) -> None:
    settings = tiny_t5.variants()[name]
    assert_parity(shelf.bundle(settings, EXITS), tiny.hugging_face(shelf.checkpoint(settings)))


def test_a_float16_bundle_of_a_float16_checkpoint_loses_nothing(shelf: Any) -> None:
    settings = tiny_t5.newer()
    model = tiny.hugging_face(shelf.checkpoint(settings, dtype="float16"))
    assert_parity(shelf.bundle(settings, EXITS, dtype="float16", precision="fp16"), model)


@pytest.mark.parametrize("settings", [tiny_t5.t5(), tiny_t5.newer()], ids=["t5", "t5-1.1"])
def test_what_transformers_saves(shelf: Any, tmp_path: Path, settings: tiny.Config) -> None:
    """Its config calls every model tied; whether the head is, and whether it scales, is said elsewhere."""
    model = tiny.hugging_face(shelf.checkpoint(settings))
    model.save_pretrained(tmp_path / "saved", max_shard_size="40KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    assert_parity(tiny.open_bundle(tmp_path / "bundle", tmp_path / "saved", EXITS), model)


@pytest.mark.parametrize(
    "settings",
    [
        tiny_t5.t5(num_layers=1, num_decoder_layers=2),
        tiny_t5.newer(num_layers=1, num_decoder_layers=1, relative_attention_num_buckets=4),
    ],
    ids=["t5", "t5-1.1"],
)
def test_every_tensor_counts(tmp_path: Path, settings: tiny.Config) -> None:
    """Whatever tensor is spoilt, the greedy tokens differ from the model's."""
    tensors = tiny.weights(settings, gain=3.0)
    model = tiny.hugging_face(tiny.checkpoint(tmp_path / "true", settings, tensors))
    expected = [tiny_t5.tokens(model, source, 12) for source in tiny_t5.SOURCES[1:]]

    def generated(changed: dict[str, Any]) -> list[list[int]]:
        source = tiny.checkpoint(tmp_path / "checkpoint", settings, {**tensors, **changed})
        opened = tiny.open_bundle(tmp_path / "bundle", source, context=128)
        return [tiny.tokens(opened, source, 12, stop=()) for source in tiny_t5.SOURCES[1:]]

    assert generated({}) == expected
    unseen = [key for key, tensor in tensors.items() if generated({key: spoilt(key, tensor)}) == expected]
    assert unseen == []
