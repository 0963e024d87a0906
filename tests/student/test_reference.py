"""The numpy model: a hand-computed layer, chunked reading, and transformers on every kind of model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.student import store as store_module
from eecompile.student.model import DecoderSpec
from eecompile.student.reference import ACTIVATIONS, ReferenceModel
from eecompile.student.rope import Rope
from eecompile.student.student import open_student

IDS = np.random.default_rng(3).integers(0, tiny.VOCAB, 70).tolist()


def reference(path: Path) -> ReferenceModel:
    student = open_student(path)
    return ReferenceModel(student.spec, student.store)


def test_activations() -> None:
    x = np.array([-100.0, -1.0, 0.0, 1.0, 100.0], np.float32)
    expected = {
        "silu": [0, -0.26894142, 0, 0.73105858, 100],
        "gelu": [0, -0.15865525, 0, 0.84134475, 100],
        "gelu_tanh": [0, -0.15880801, 0, 0.84119199, 100],
        "relu": [0, 0, 0, 1, 100],
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        assert ACTIVATIONS[name](x).dtype == np.float32
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, atol=1e-6)


def test_a_row_depends_on_nothing_after_it(tmp_path: Path) -> None:
    model = reference(tiny.checkpoint(tmp_path))
    _, _, whole = model.run(IDS[:20], [])
    _, _, part = model.run(IDS[:7], [])
    np.testing.assert_allclose(part, whole[:7], atol=1e-4)


def test_a_window_hides_what_is_before_it(tmp_path: Path) -> None:
    """With one layer and a window of 5, a row depends on its last five tokens and, by RoPE, not on where it is."""
    model = reference(tiny.checkpoint(tmp_path, tiny.config("mistral", num_hidden_layers=1, sliding_window=5)))
    _, _, whole = model.run(IDS[:30], [])
    _, _, last = model.run(IDS[25:30], [])
    np.testing.assert_allclose(last[-1], whole[-1], atol=1e-4)
    _, _, changed = model.run([*IDS[:25], (IDS[25] + 1) % tiny.VOCAB, *IDS[26:30]], [])
    assert np.abs(changed[-1] - whole[-1]).max() > 1e-2


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference(tiny.checkpoint(tmp_path))
    boundaries, finished, logits = model.run(IDS, [1, 3])
    monkeypatch.setattr(store_module, "_CHUNK_BYTES", 1000)
    again = model.run(IDS, [1, 3])
    np.testing.assert_allclose(again[2], logits, atol=1e-4)
    np.testing.assert_allclose(again[1], finished, atol=1e-4)
    assert sorted(boundaries) == sorted(again[0]) == [1, 3]


def plainer(spec: DecoderSpec) -> dict[str, DecoderSpec]:
    """The model without each thing that it has beside a plain llama and that needs no other weights."""
    plain: dict[str, Any] = {
        "softcap": None, "logit_softcap": None, "embed_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0,
        "norm": "rms", "norm_bias": False, "parallel": False, "activation": "silu", "qk_norm": None, "norm_eps": 1e-5,
        "qkv_bias": False, "o_bias": False, "mlp_bias": False, "windows": (None,) * spec.layers,
        "scales": (spec.head_dim**-0.5,) * spec.layers, "ropes": tuple(rope or Rope(1000.0) for rope in spec.ropes),
    }  # fmt: skip
    found = {name: replace(spec, **{name: value}) for name, value in plain.items() if getattr(spec, name) != value}
    for name, value in {"share": 1.0, "interleaved": False, "kind": "default", "theta": 1000.0}.items():
        ropes = tuple(rope and replace(rope, **{name: value}) for rope in spec.ropes)
        found |= {} if ropes == spec.ropes else {name: replace(spec, ropes=ropes)}
    return found


@pytest.mark.parametrize("name", tiny.other_variants())
def test_every_switch_counts(tmp_path: Path, name: str) -> None:
    """Without it the logits are others, by much more than parity allows: parity speaks of every switch."""
    model = reference(tiny.checkpoint(tmp_path, tiny.variants()[name]))
    _, _, logits = model.run(IDS, [])
    others = plainer(model.spec)
    assert others
    for switch, spec in others.items():
        _, _, found = ReferenceModel(spec, model.store).run(IDS, [])
        assert np.abs(found - logits).max() > 1e-3 * np.abs(logits).max(), switch


@pytest.mark.torch
@pytest.mark.parametrize("name", tiny.variants())
def test_equals_transformers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = tiny.checkpoint(tmp_path, tiny.variants()[name])
    boundaries, finished, logits = reference(path).run(IDS, [1, 2, 3])
    states, expected = tiny.hugging_face_states(tiny.hugging_face(path), IDS)
    for layer, rows in boundaries.items():
        np.testing.assert_allclose(rows, states[layer], atol=2e-3)
    np.testing.assert_allclose(finished, states[-1], atol=1e-3)
    np.testing.assert_allclose(logits, expected, atol=2e-3)
