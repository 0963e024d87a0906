"""Families: what each config turns into, transformers' own defaults, and refusals that name what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile.errors import UsageError
from eecompile.student.families import FAMILIES, spec_from_config
from eecompile.student.model import DecoderSpec
from eecompile.student.rope import rope_tables


def described(family: str, **changes: Any) -> DecoderSpec:
    return spec_from_config(tiny.config(family, **changes))


def test_llama_switches() -> None:
    plain = described("llama")
    assert (plain.qkv_bias, plain.o_bias, plain.mlp_bias, plain.qk_norm) == (False, False, False, False)
    assert plain.windows == (None,) * 4
    biased = described("llama", attention_bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, False)
    assert described("llama", mlp_bias=True).mlp_bias
    assert described("llama", num_key_value_heads=None).kv_heads == 4
    assert described("llama", head_dim=None).head_dim == 8


def test_mistral_windows() -> None:
    assert described("mistral", sliding_window=20).windows == (20,) * 4
    assert described("mistral", sliding_window=None).windows == (None,) * 4


def test_qwen2_has_three_biases_and_windows_on_request() -> None:
    plain = described("qwen2", sliding_window=20)
    assert (plain.qkv_bias, plain.o_bias, plain.mlp_bias, plain.qk_norm) == (True, False, False, False)
    assert plain.windows == (None,) * 4
    on = {"use_sliding_window": True, "sliding_window": 20}
    assert described("qwen2", **on, max_window_layers=3).windows == (None, None, None, 20)
    kinds = ["full_attention", "sliding_attention"] * 2
    assert described("qwen2", **on, layer_types=kinds).windows == (None, 20, None, 20)


def test_qwen3_normalises_queries_and_keys() -> None:
    plain = described("qwen3", head_dim=None)
    assert (plain.qkv_bias, plain.o_bias, plain.qk_norm, plain.head_dim) == (False, False, True, 128)
    biased = described("qwen3", attention_bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, False)


def test_end_of_sequence_is_one_id_or_several() -> None:
    assert described("llama", eos_token_id=7).eos == (7,)
    assert described("llama", eos_token_id=[7, 9]).eos == (7, 9)


def test_tensors_and_shapes() -> None:
    spec = described("qwen3", num_key_value_heads=1, head_dim=16, attention_bias=True)
    shapes = spec.shapes()
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (64, 32)
    assert shapes["model.layers.3.self_attn.k_proj.bias"] == (16,)
    assert shapes["model.layers.3.self_attn.o_proj.weight"] == (32, 64)
    assert shapes["model.layers.0.self_attn.q_norm.weight"] == (16,)
    assert shapes["lm_head.weight"] == (tiny.VOCAB, 32)
    assert len(shapes) == 3 + 4 * (2 + 7 + 4 + 2)
    assert "lm_head.weight" not in described("llama", tie_word_embeddings=True).shapes()


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "", None, 3, ["llama"]])
def test_an_unsupported_family_is_named_with_the_supported(family: Any) -> None:
    with pytest.raises(UsageError, match="supported families: llama, mistral, qwen2, qwen3") as caught:
        spec_from_config({**tiny.config(), "model_type": family})
    assert repr(family) in caught.value.what


def test_a_quantised_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match=r"already quantised(.|\n)*float32, float16 or bfloat16"):
        described("llama", quantization_config={"quant_method": "gptq", "bits": 4})


def test_an_unsupported_activation_is_named_with_the_supported() -> None:
    with pytest.raises(UsageError, match=r"'xielu' is not supported(.|\n)*gelu, gelu_new, gelu_pytorch_tanh, relu"):
        described("llama", hidden_act="xielu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_attention_heads": 1 << 20}, "num_attention_heads"),
        ({"intermediate_size": "64"}, "intermediate_size is '64'"),
        ({"num_key_value_heads": 3}, "4 heads of 8 do not fit 3"),
        ({"head_dim": 7}, "4 heads of 7"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": tiny.VOCAB}, "eos_token_id"),
        ({"eos_token_id": [3, None]}, "eos_token_id"),
        ({"bos_token_id": -2}, "bos_token_id"),
        ({"sliding_window": -4}, "sliding_window"),
        ({"sliding_window": "wide"}, "sliding_window"),
    ],
)
def test_a_size_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        described("mistral", **changes)
    assert caught.value.where == "config.json"


ANY = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "silu", "yarn", "full"])
VALUE = ANY | st.lists(ANY, max_size=4) | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), ANY)
KEYS = [*tiny.config(), "rope_scaling", "rope_parameters", "layer_types", "use_sliding_window", "max_window_layers"]


@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=3))
def test_any_config_is_described_or_refused(family: str, changes: dict[str, Any]) -> None:
    try:
        spec = spec_from_config({**tiny.config(family), **changes})
    except UsageError:
        return
    assert len(spec.windows) == spec.layers
    assert all(window is None or window > 0 for window in spec.windows)
    assert all(np.isfinite(table).all() for table in rope_tables(spec.rope, spec.head_dim, 4))
    assert spec.shapes()


@pytest.mark.torch
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_config_leaves_out_is_transformers_default(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    least = {"model_type": family, "hidden_size": 256, "num_hidden_layers": 30, "num_attention_heads": 64}
    least |= {"intermediate_size": 64, "vocab_size": 100}
    theirs = transformers.AutoConfig.for_model(**least)
    ours = spec_from_config(least)
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 256 // 64)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.bos == theirs.bos_token_id
    assert ours.eos == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    everywhere = getattr(theirs, "sliding_window", None)
    assert ours.windows == (everywhere,) * 30
    if family.startswith("qwen"):
        switched = {**least, "use_sliding_window": True}
        theirs = transformers.AutoConfig.for_model(**switched)
        expected = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
        assert None in expected
        assert 4096 in expected
        assert spec_from_config(switched).windows == tuple(expected)
