"""Families: what each config turns into, transformers' own defaults, and refusals that name what is wrong."""

from dataclasses import replace
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
    assert (plain.qkv_bias, plain.o_bias, plain.mlp_bias, plain.qk_norm) == (False, False, False, None)
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
    assert (plain.qkv_bias, plain.o_bias, plain.mlp_bias, plain.qk_norm) == (True, False, False, None)
    assert plain.windows == (None,) * 4
    on = {"use_sliding_window": True, "sliding_window": 20}
    assert described("qwen2", **on, max_window_layers=3).windows == (None, None, None, 20)
    kinds = ["full_attention", "sliding_attention"] * 2
    assert described("qwen2", **on, layer_types=kinds).windows == (None, 20, None, 20)


def test_qwen3_normalises_queries_and_keys() -> None:
    plain = described("qwen3", head_dim=None)
    assert (plain.qkv_bias, plain.o_bias, plain.qk_norm, plain.head_dim) == (False, False, "head", 128)
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


@pytest.mark.parametrize("family", ["gpt_bigcode", "gemma3", "", None, 3, ["llama"]])
def test_an_unsupported_family_is_named_with_the_supported(family: Any) -> None:
    with pytest.raises(UsageError) as caught:
        spec_from_config({**tiny.config(), "model_type": family})
    assert repr(str(family)) in caught.value.what
    assert f"supported families: {', '.join(sorted(FAMILIES))}" in caught.value.mend


def test_a_quantised_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match=r"already quantised(.|\n)*float32, float16 or bfloat16"):
        described("llama", quantization_config={"quant_method": "gptq", "bits": 4})


def test_an_unsupported_activation_is_named_with_the_supported() -> None:
    with pytest.raises(UsageError, match=r"'xielu' is not supported(.|\n)*gelu, gelu_fast, gelu_new(.|\n)*relu"):
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


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is not supported"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
        ("gemma2", {"final_logit_softcapping": "x"}, "final_logit_softcapping is 'x'"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma2", {"hidden_activation": 3}, "activation 3 is not supported"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gemma3_text", {"rope_parameters": [1]}, "not an object"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "not objects by layer type"),
        ("olmo3", {"layer_types": ["full_attention"]}, "layer_types does not say for 4 layers"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        ("granite", {"attention_multiplier": -np.inf}, "attention_multiplier is -inf"),
        ("granite", {"residual_multiplier": 10**400}, "residual_multiplier is 1000"),
        ("gpt_neox", {"hidden_size": 34}, "4 heads of 8 do not fit"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers does not say for 4 layers"),
        ("gpt_neox", {"rotary_pct": 0.1}, "rotating 0.1 of heads of 8"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4}}, "long_factor is not 4 positive"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "not supported in this family"),
    ],
)
def test_what_a_family_cannot_have_is_named(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        described(family, **changes) if family != "gpt2" else spec_from_config(tiny.gpt2(**changes))
    assert caught.value.where == "config.json"


def test_gpt2_reads_its_own_words_and_the_common_ones() -> None:
    spec = spec_from_config(tiny.gpt2(n_inner=96))
    assert (spec.hidden, spec.layers, spec.heads, spec.kv_heads, spec.max_positions) == (32, 4, 4, 4, 256)
    assert (spec.intermediate, spec_from_config(tiny.gpt2()).intermediate) == (96, 128)
    assert spec_from_config({**tiny.config("gpt2"), "intermediate_size": 96, "layer_norm_epsilon": 1e-2, **{
        "tie_word_embeddings": True}}) == replace(spec, activation="silu")  # fmt: skip
    halved = spec_from_config(tiny.gpt2(scale_attn_by_inverse_layer_idx=True))
    assert halved.scales == tuple(8**-0.5 / n for n in (1, 2, 3, 4))
    assert spec_from_config(tiny.gpt2(scale_attn_weights=False)).scales == (1.0,) * 4


def test_fused_tensors_are_named_with_their_own_shapes() -> None:
    """The checkpoint holds one tensor; q, k and v are its columns, rows, or rows by the head."""
    gpt2, neox, phi3 = (spec_from_config(tiny.variants()[name]) for name in ("gpt2", "gpt_neox", "phi3-groups"))
    assert gpt2.tensors()["transformer.h.3.attn.c_attn.weight"] == (32, 96)
    assert gpt2.tensors()["transformer.h.3.attn.c_attn.bias"] == (96,)
    assert gpt2.tensors()["transformer.h.0.mlp.c_proj.weight"] == (128, 32)
    assert gpt2.shapes()["transformer.h.0.mlp.c_proj.weight"] == (32, 128)
    assert neox.tensors()["gpt_neox.layers.0.attention.query_key_value.weight"] == (96, 32)
    assert phi3.tensors()["model.layers.1.self_attn.qkv_proj.weight"] == (32 + 2 * 16, 32)
    assert phi3.tensors()["model.layers.1.mlp.gate_up_proj.weight"] == (128, 32)
    views = neox.views()
    assert views["gpt_neox.layers.2.attention.query_key_value.k.bias"].runs == tuple(
        range(24 * head + 8, 24 * head + 16) for head in range(4)
    )
    for spec in (gpt2, neox, phi3):
        shapes = spec.shapes()
        assert all(view.weight_shape == shapes[name] for name, view in spec.views().items() if name in shapes)
        assert sum(np.prod(s) for s in shapes.values()) == sum(np.prod(s) for s in spec.tensors().values())


def test_gemma_adds_one_to_its_norms() -> None:
    spec = described("gemma3_text")
    assert {view.add for view in spec.views().values()} == {1.0}
    assert len(spec.views()) == 1 + 4 * 6
    assert spec.embed_scale == 32**0.5


def test_which_layers_slide_and_rotate() -> None:
    assert described("gemma2").windows == (20, None) * 2
    assert described("gemma2", layer_types=["full_attention"] * 4).windows == (None,) * 4
    gemma3 = described("gemma3_text", sliding_window_pattern=3)
    assert gemma3.windows == (20, 20, None, 20)
    assert [rope.theta for rope in gemma3.ropes if rope] == [100.0, 100.0, 1000.0, 100.0]
    assert [rope.kind for rope in gemma3.ropes if rope] == ["default", "default", "linear", "default"]
    assert described("olmo3").windows == (20, 20, 20, None)
    cohere = described("cohere2")
    assert cohere.windows == (20, 20, 20, None)
    assert [rope is None for rope in cohere.ropes] == [False, False, False, True]
    smollm = described("smollm3", use_sliding_window=True, sliding_window=20, no_rope_layers=[0, 1, 1, 0])
    assert [rope is None for rope in smollm.ropes] == [True, False, False, True]
    assert smollm.windows == (20, None, None, 20)
    assert described("smollm3", sliding_window=20).windows == (None,) * 4


def test_phi3s_first_names_for_longrope() -> None:
    scaling = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    now, *before = (described("phi3", rope_scaling={"type": kind, **scaling}) for kind in ("longrope", "su", "yarn"))
    assert before == [now, now]
    assert now.at_context(4096) == now
    assert {rope.divisors for rope in now.at_context(4097).ropes if rope} == {(2.0,) * 4}


ANY = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "silu", "yarn", "full"])
VALUE = ANY | st.lists(ANY, max_size=4) | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), ANY)
KEYS = [
    *tiny.config(), *tiny.gpt2(), *(key for changes in tiny.FAMILY.values() for key in changes), "rope_scaling",
    "rope_parameters", "layer_types", "use_sliding_window", "max_window_layers", "no_rope_layers",
    "no_rope_layer_interval", "original_max_position_embeddings",
]  # fmt: skip


@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=3))
def test_any_config_is_described_or_refused(family: str, changes: dict[str, Any]) -> None:
    try:
        spec = spec_from_config({**tiny.config(family), **changes})
    except UsageError:
        return
    assert len(spec.windows) == spec.layers
    assert all(window is None or window > 0 for window in spec.windows)
    ropes = [rope for rope in spec.ropes if rope is not None]
    assert all(np.isfinite(table).all() for rope in ropes for table in rope_tables(rope, spec.head_dim, 4))
    assert np.isfinite([*spec.scales, spec.embed_scale, spec.residual_scale, spec.logit_scale]).all()
    assert spec.shapes()
    assert spec.tensors()


@pytest.mark.torch
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_config_leaves_out_is_transformers_default(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    least = {"model_type": family, "hidden_size": 1024, "num_hidden_layers": 30, "num_attention_heads": 64}
    least |= {"intermediate_size": 64, "vocab_size": 1 << 18}
    configs = [least, {**least, "use_sliding_window": True}] if family in ("qwen2", "qwen3") else [least]
    for config in configs:
        theirs = transformers.AutoConfig.for_model(**config).to_dict()
        ours, spelt = spec_from_config(config), spec_from_config({**theirs, "model_type": family})
        assert ours == spelt
        assert ours.max_positions == theirs.get("max_position_embeddings", theirs.get("n_positions"))
        assert ours.tied == theirs["tie_word_embeddings"]
        assert ours.bos == theirs["bos_token_id"]
        assert ours.eos == (() if theirs["eos_token_id"] is None else (theirs["eos_token_id"],))
