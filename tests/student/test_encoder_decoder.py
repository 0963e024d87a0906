"""What a T5 config says, the buckets of its positions, and the numpy model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile.errors import UsageError
from eecompile.student.encoder_decoder import EncoderDecoderSpec, RelativeBias
from eecompile.student.encoder_decoder_reference import reference_model
from eecompile.student.families import spec_from_config
from eecompile.student.student import open_student

SIZES = [(32, 128), (32, 127), (8, 20), (8, 16), (6, 50), (4, 3), (12, 100), (64, 512), (128, 4096)]


def described(settings: tiny.Config) -> EncoderDecoderSpec:
    spec = spec_from_config(settings)
    assert isinstance(spec, EncoderDecoderSpec)
    return spec


@pytest.mark.torch
@pytest.mark.parametrize(("count", "distance"), SIZES)
@pytest.mark.parametrize("both", [True, False])
def test_buckets_are_those_of_transformers(count: int, distance: int, both: bool) -> None:
    """Each distance up to the last, and those beyond it, which are all in one bucket."""
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = torch.arange(-3 * distance, 3 * distance + 1)
    expected = t5.T5Attention._relative_position_bucket(relative, both, count, distance).numpy()
    near = np.clip(relative.numpy(), -distance, distance) + distance
    np.testing.assert_array_equal(RelativeBias(count, distance).buckets(both=both)[near], expected)


def test_the_first_version_scales_its_logits() -> None:
    first, later = described(tiny_t5.t5()), described(tiny_t5.newer())
    assert (first.logit_scale, first.tied, first.gated, first.activation) == (32**-0.5, True, False, "relu")
    assert (later.logit_scale, later.tied, later.gated, later.activation) == (1.0, False, True, "gelu_tanh")
    assert described(tiny_t5.t5(scale_decoder_outputs=False)).logit_scale == 1.0
    assert described(tiny_t5.newer(family="mt5")).logit_scale == 1.0
    assert described(tiny_t5.t5(feed_forward_proj="gelu")).activation == "gelu"


def test_sizes_and_starts() -> None:
    spec = described(tiny_t5.t5(num_decoder_layers=None, decoder_start_token_id=None, pad_token_id=9))
    assert (spec.layers, spec.encoder.layers, spec.start, spec.eos) == (2, 2, 9, (1,))
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.scales) == (4, 4, 16, (1.0, 1.0))
    assert described(tiny_t5.t5(decoder_start_token_id=3)).start == 3
    shapes = spec.shapes()
    assert shapes["decoder.block.1.layer.1.EncDecAttention.o.weight"] == (32, 64)
    assert shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (8, 4)
    assert len(shapes) == 1 + 2 + 2 + 2 * (6 + 2) + 2 * (6 + 5 + 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"d_kv": 0}, {"num_heads": -1}, {"num_decoder_layers": 0}, {"feed_forward_proj": "gated-swoosh"},
        {"feed_forward_proj": 3}, {"relative_attention_num_buckets": 2}, {"relative_attention_max_distance": 4},
        {"decoder_start_token_id": tiny.VOCAB}, {"layer_norm_epsilon": -1.0}, {"eos_token_id": "end"},
    ],
    ids=str,
)  # fmt: skip
def test_configs_that_do_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        described(tiny_t5.t5(**changes))


def test_the_checkpoint_says_whether_the_head_is_its_own(tmp_path: Path) -> None:
    """transformers writes tied embeddings into every config, and leaves a head that differs in the weights."""
    settings = tiny_t5.newer(tie_word_embeddings=True, scale_decoder_outputs=False)
    head = {"lm_head.weight": np.ones((tiny.VOCAB, 32), np.float32)}
    tied, own = (
        open_student(tiny.checkpoint(tmp_path / name, settings, {**tiny.weights(settings), **more})).spec
        for name, more in (("tied", {}), ("own", head))
    )
    assert (tied.tied, own.tied, own.head_weight) == (True, False, "lm_head.weight")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny_t5.t5())
    del tensors["decoder.block.2.layer.1.EncDecAttention.v.weight"]
    with pytest.raises(UsageError, match=r"decoder\.block\.2\.layer\.1\.EncDecAttention\.v\.weight"):
        open_student(tiny.checkpoint(tmp_path, tiny_t5.t5(), tensors))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["t5", "t5-1.1-start"])
def test_the_numpy_model_is_the_model(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    path = tiny.checkpoint(tmp_path, tiny_t5.variants()[name])
    student, model = open_student(path), tiny.hugging_face(path)
    target = np.random.default_rng(3).integers(0, tiny.VOCAB, 50).tolist()
    for source in tiny_t5.SOURCES:
        hidden, finished, logits = reference_model(student.spec, student.store, source).run(target, [1, 3])
        states, expected = tiny_t5.states(model, source, target)
        wanted_rows = (states[1], states[3], states[-1], expected)
        for rows, wanted in zip((hidden[1], hidden[3], finished, logits), wanted_rows, strict=True):
            np.testing.assert_allclose(rows, wanted, atol=1e-4 * np.abs(wanted).max())
