"""An encoder's bundle is the model: every boundary and the logits against transformers in float32, padding included."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder as te
from real_inputs import real_input
from safetensors.numpy import load_file, save_file

from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.trace_texts import TextTracer
from eecompile.student.encoder_reference import EncoderReference
from eecompile.student.encoder_student import open_encoder

EXITS = [1, 3]


def close(actual: tiny.Float, expected: tiny.Float, tolerance: float = 1e-4) -> bool:
    assert actual.shape == expected.shape
    return bool(np.abs(actual - expected).max() < tolerance * np.abs(expected).max())


def assert_parity(opened: Bundle, model: Any, texts: list[Any], tolerance: float = 1e-4) -> None:
    states, logits = te.hugging_face_rows(model, texts)
    found = TextTracer(opened, boundaries=True).trace(texts)
    layers = [0, *(e.layer for e in opened.manifest.exits), opened.manifest.model.layers]
    assert len(found.boundaries) == len(layers)
    for rows, layer in zip(found.boundaries, layers, strict=True):
        assert close(rows, states[layer], tolerance), layer
    assert close(found.logits, logits, tolerance)
    answered = opened.classifier().answer(texts)
    assert np.array_equal(answered.logits, found.logits)


@pytest.mark.torch
@pytest.mark.parametrize("name", te.variants())
def test_every_family_and_task(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    settings = te.variants()[name]
    source = te.checkpoint(tmp_path / "checkpoint", settings)
    types = settings.get("type_vocab_size", 0)
    opened = te.open_bundle(tmp_path / "bundle", source, EXITS)
    assert_parity(opened, te.hugging_face(source), te.random_texts(7, types=types))


@pytest.mark.torch
@pytest.mark.parametrize("family", te.CLASSES)
def test_what_transformers_saves(tmp_path: Path, family: str) -> None:
    """transformers writes its own spelling of the config."""
    pytest.importorskip("transformers")
    model = te.hugging_face(te.checkpoint(tmp_path / "checkpoint", te.config(family, "tokens")))
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    opened = te.open_bundle(tmp_path / "bundle", tmp_path / "saved", EXITS)
    assert_parity(opened, model, te.random_texts(3, types=0))


@pytest.mark.parametrize("name", te.variants())
def test_the_numpy_model_is_the_bundle(tmp_path: Path, name: str) -> None:
    settings = te.variants()[name]
    source = te.checkpoint(tmp_path / "checkpoint", settings)
    texts = te.random_texts(3, types=settings.get("type_vocab_size", 0))
    found = TextTracer(te.open_bundle(tmp_path / "bundle", source), boundaries=True).trace(texts)
    student = open_encoder(source)
    reference = EncoderReference(student.spec, student.store)
    rows = [reference.run(t.ids, t.types) for t in texts]
    assert close(found.boundaries[-1], np.concatenate([r.boundaries[-1] for r in rows]), 1e-5)
    assert close(found.logits, np.concatenate([r.logits for r in rows]), 1e-5)


@pytest.mark.torch
def test_a_padding_id_inside_a_text_is_where_transformers_puts_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = te.checkpoint(tmp_path / "checkpoint", te.config("roberta", "tokens"))
    text = te.encoded([5, 1, 7, 1, 1, 9])
    assert_parity(te.open_bundle(tmp_path / "bundle", source), te.hugging_face(source), [text])


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", te.CLASSES)
def test_smaller_precisions_stay_near(tmp_path: Path, family: str, precision: str) -> None:
    source, texts = te.checkpoint(tmp_path / "checkpoint", te.config(family, "tokens")), te.random_texts(8, types=1)
    full, small = (
        te.open_bundle(tmp_path / p, source, EXITS, precision=p).classifier().answer(texts).logits
        for p in ("fp32", precision)
    )
    error = np.abs(full - small).mean() / np.abs(full).mean()
    assert 0 < error < {"fp16": 2e-3, "int8": 0.05, "int4": 0.5}[precision]


@pytest.mark.torch
@pytest.mark.real
def test_rampart_is_rampart(tmp_path: Path) -> None:
    """Real weights, texts of real tokens, against transformers."""
    pytest.importorskip("transformers")
    source = real_input("rampart")
    opened = te.open_bundle(tmp_path / "bundle", source, [3, 5])
    texts = [
        "My name is John Smith.",
        "No names.",
        "Write to jane.doe@example.org, 12 High Street, Springfield " * 9,
    ]
    classifier = opened.classifier()
    assert_parity(opened, te.hugging_face(source), classifier.encoder.encode(texts))
    labels = {t.text: t.label for t in classifier.classify(texts)[0].tokens or []}
    assert labels["John"].endswith("GIVEN_NAME")
    assert labels["name"] == "O"


@pytest.mark.torch
@pytest.mark.real
def test_minilm_with_a_classifier(tmp_path: Path) -> None:
    """MiniLM's own encoder and pooler, under a made-up classifier: refused without one."""
    pytest.importorskip("transformers")
    source = real_input("minilm")
    with pytest.raises(UsageError, match="BertModel has no classifier"):
        open_encoder(source)
    made, rng = tmp_path / "classifier", np.random.default_rng(0)
    made.mkdir()
    settings = json.loads((source / "config.json").read_text())
    settings["architectures"] = ["BertForSequenceClassification"]
    (made / "config.json").write_text(json.dumps(settings))
    (made / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    tensors = {f"bert.{n}": t for n, t in load_file(source / "model.safetensors").items() if "position_ids" not in n}
    tensors |= {
        "classifier.weight": rng.standard_normal((2, 384)).astype(np.float32),
        "classifier.bias": np.ones(2, np.float32),
    }
    save_file(tensors, made / "model.safetensors")
    opened = te.open_bundle(tmp_path / "bundle", made, [2, 4])
    texts = opened.classifier().encoder.encode(["A cat sat on the mat.", ("Is it?", "It is, all day long."), "No."])
    assert_parity(opened, te.hugging_face(made), texts)
