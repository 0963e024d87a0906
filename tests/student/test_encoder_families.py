"""What the encoder families make of a config: tasks, labels, positions, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder as te

from eecompile.errors import UsageError
from eecompile.runtime.encode import positions_of
from eecompile.student.encoder_student import EncoderStudent, open_checkpoint, open_encoder
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.families import ENCODERS, encoder_from_config, spec_from_config
from eecompile.student.student import Student


@pytest.mark.parametrize("name", te.variants())
def test_specs_say_what_the_config_says(name: str) -> None:
    settings = te.variants()[name]
    spec = encoder_from_config(settings)
    assert spec.family == settings["model_type"]
    assert (spec.layers, spec.hidden, spec.heads, spec.head_dim, spec.intermediate) == (4, 32, 4, 8, 64)
    assert len(spec.labels) == len(settings.get("id2label", {"0": "", "1": ""}))
    assert spec.per_token == ("Token" in settings["architectures"][0])
    assert (spec.pooler is None) == spec.per_token
    assert spec.max_positions == (78 if "roberta" in spec.family else 80)


def test_defaults_are_the_published_ones() -> None:
    base = {"architectures": ["XForSequenceClassification"]}
    for family in ENCODERS:
        spec = encoder_from_config({**base, "model_type": family})
        assert (spec.hidden, spec.heads, spec.intermediate) == (768, 12, 3072)
        assert spec.labels == ("LABEL_0", "LABEL_1")
    assert encoder_from_config({**base, "model_type": "distilbert"}).layers == 6
    assert encoder_from_config({**base, "model_type": "roberta"}).vocab == 50265


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertModel"]}, "BertModel has no classifier"),
        ({"architectures": None}, "no architecture has no classifier"),
        ({"architectures": ["BertForMaskedLM"]}, "fine-tuned"),
        ({"problem_type": "multi_label_classification"}, "several labels"),
        ({"problem_type": "regression"}, "regression with 3 values"),
        ({"id2label": {"0": "a"}, "problem_type": "single_label_classification"}, "one label"),
        ({"id2label": {"0": "a", "2": "b"}}, "from 0 to 1"),
        ({"id2label": {"x": "a", "y": "b"}}, "not numbers"),
        ({"id2label": ["a", "b"]}, "not a table"),
        ({"id2label": {"0": "", "1": "b"}}, "empty or longer"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": 30}, "4 heads do not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as fault:
        encoder_from_config({**te.config(), **changes})
    assert words in str(fault.value)


def test_roberta_needs_positions_after_its_padding() -> None:
    with pytest.raises(UsageError, match="leave none"):
        encoder_from_config(te.config("roberta", max_position_embeddings=2))


def test_an_unsupported_family_lists_every_family() -> None:
    with pytest.raises(UsageError) as fault:
        spec_from_config({"model_type": "mamba"})
    for name in ("bert", "distilbert", "roberta", "llama"):
        assert name in fault.value.mend
    with pytest.raises(UsageError, match="bert is an encoder"):
        spec_from_config(te.config())


def test_positions_skip_the_padding_id() -> None:
    assert positions_of([5, 1, 7], None) == [0, 1, 2]
    assert positions_of([5, 1, 7, 1, 9], 1) == [2, 1, 3, 1, 4]


def test_a_checkpoint_is_opened_as_what_it_is(tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(te.checkpoint(tmp_path / "encoder")), EncoderStudent)
    assert isinstance(open_checkpoint(tiny.checkpoint(tmp_path / "decoder")), Student)


def test_declared_exits_suit_the_task(tmp_path: Path) -> None:
    for task, gate in (("tokens", "max_prob"), ("regression", "delta")):
        student = open_encoder(te.checkpoint(tmp_path / task, te.config(task=task)), [1, 2])
        assert [(e.layer, e.gates, e.draft) for e in student.exits.schema.exits] == [
            (1, [gate], None),
            (2, [gate], None),
        ]
    with pytest.raises(UsageError, match="before the last of 4 layers"):
        open_encoder(tmp_path / "tokens", [4])


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        ({"gates": ["learned"], "gate_units": 4}, "learned"),
        ({"gates": ["delta"]}, "delta"),
        ({"gates": ["max_prob"], "draft": {"max_prob": 0.5}}, "nothing to draft"),
        ({"gates": ["max_prob"], "adapter": "classifier"}, "no weights"),
        ({"gates": ["max_prob"], "adapter": "affine"}, "no weights"),
    ],
)
def test_exits_that_are_refused(tmp_path: Path, exit_: dict[str, Any], words: str) -> None:
    source = te.checkpoint(tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    gate = {"w1": (32, 4), "b1": (4,), "w2": (4, 1), "b2": (1,)} if "gate_units" in exit_ else {}
    tensors = {f"exit.2.gate.{n}": rng.standard_normal(s).astype(np.float32) for n, s in gate.items()}
    save_exits(source, EarlyExit(exits=[ExitSpec(layer=2, **exit_)]), tensors)
    with pytest.raises(UsageError) as fault:
        open_encoder(source)
    assert words in str(fault.value)


def test_own_classifiers_have_to_fit(tmp_path: Path) -> None:
    source = te.add_own_classifiers(te.checkpoint(tmp_path / "checkpoint"), [2])
    assert open_encoder(source).exits.has(2, "pooler.weight")
    schema = json.loads((source / "early_exit.json").read_text())
    exits = EarlyExit.model_validate({**schema, "weights": None})
    sizes = {"exit.2.classifier.weight": (32, 3), "exit.2.classifier.bias": (3,)}
    for spoil, words in (((32, 4), "shape"), (None, "lacks"), ("nan", "not finite")):
        tensors = {n: np.zeros(s, np.float32) for n, s in sizes.items()}
        if spoil is None:
            del tensors["exit.2.classifier.bias"]
        elif spoil == "nan":
            tensors["exit.2.classifier.bias"][0] = np.nan
        else:
            tensors["exit.2.classifier.weight"] = np.zeros(spoil, np.float32)
        save_exits(source, exits, tensors)
        with pytest.raises(UsageError, match=words):
            open_encoder(source)


def test_a_decoder_has_no_classifiers(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint")
    save_exits(source, EarlyExit(exits=[ExitSpec(layer=2, adapter="classifier", gates=["max_prob"])]), {})
    with pytest.raises(UsageError, match="only exits of encoders"):
        open_checkpoint(source)
