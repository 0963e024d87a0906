"""Rotary tables: by hand where a formula is short, and against transformers for every scaling and spelling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.errors import UsageError
from eecompile.student import rope as module
from eecompile.student.rope import Rope, rope_tables

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64.0}

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [float(n + 2) for n in range(8)]}


def rope_from_config(config: dict[str, Any], head_dim: int = 16, **options: Any) -> Rope:
    return module.rope_from_config(config, head_dim, **options)


def frequencies(rope: Rope, head_dim: int = 16) -> Any:
    """Angle per position, read off the tables at position 1 (all angles there are below pi)."""
    cos, sin = rope_tables(rope, head_dim, 2)
    return np.arctan2(sin[1], cos[1])


def test_default_is_a_geometric_series() -> None:
    expected = 100.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(frequencies(Rope(100.0)), expected, rtol=1e-6)
    cos, sin = rope_tables(Rope(100.0), 16, 5)
    assert cos.shape == sin.shape == (5, 8)
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_allclose(cos[4], np.cos(4 * expected), rtol=1e-5)


def test_linear_divides_positions() -> None:
    stretched, _ = rope_tables(Rope(100.0, "linear", {"factor": 4.0}), 16, 9)
    plain, _ = rope_tables(Rope(100.0), 16, 3)
    np.testing.assert_allclose(stretched[8], plain[2], rtol=1e-6)


def test_llama3_keeps_fast_dimensions_and_slows_the_slow_ones() -> None:
    plain, scaled = frequencies(Rope(1000.0)), frequencies(Rope(1000.0, "llama3", LLAMA3))
    wavelength = 2 * np.pi / plain
    fast, slow = wavelength < 64 / 4, wavelength > 64
    assert fast.any()
    assert slow.any()
    assert (~fast & ~slow).any()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = scaled[~fast & ~slow]
    assert (between < plain[~fast & ~slow]).all()
    assert (between > plain[~fast & ~slow] / 8).all()


def test_yarn_scales_length_and_frequencies() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = rope_from_config({"rope_theta": 1000.0, "rope_scaling": scaling})
    cos, sin = rope_tables(rope, 16, 2)
    magnitude = 0.1 * np.log(4.0) + 1
    np.testing.assert_allclose(np.hypot(cos, sin), magnitude, rtol=1e-6)
    scaled, plain = np.arctan2(sin[1], cos[1]), frequencies(Rope(1000.0))
    assert scaled[0] == pytest.approx(plain[0], rel=1e-6)
    assert scaled[-1] == pytest.approx(plain[-1] / 4, rel=1e-6)


def test_both_spellings_are_one() -> None:
    old = rope_from_config({"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    new = rope_from_config({"rope_parameters": {"rope_theta": 500.0, "rope_type": "llama3", **LLAMA3}})
    older = rope_from_config({"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **LLAMA3}})
    assert old == new == older
    assert rope_from_config({}) == Rope(10_000.0, "default", {"max_position_embeddings": 2048.0})


@pytest.mark.parametrize("kind", ["dynamic", "su", "proportional", "", None, 3])
def test_an_unknown_scaling_is_named_with_the_known(kind: Any) -> None:
    with pytest.raises(UsageError, match=rf"'?{kind}'?(.|\n)*default, linear, llama3, longrope, yarn"):
        rope_from_config({"rope_scaling": {"rope_type": kind, "factor": 2.0}})


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_scaling_without_its_numbers_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="lacks factor"):
        rope_from_config({"rope_scaling": {"rope_type": kind}})


@pytest.mark.parametrize(
    "settings",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_theta": None},
        {"rope_theta": "x"},
        {"rope_theta": 0},
        {"rope_theta": float("nan")},
        {"rope_scaling": 3},
        {"rope_scaling": {"rope_type": "linear", "factor": "4"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}},
        {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 1}},
        {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 7}},
        {"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 7 + [0.0]}},
        {"rope_scaling": {**LONGROPE, "long_factor": None}},
        {"rope_scaling": {**LONGROPE, "factor": 0}},
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": "4096"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        rope_from_config(settings)
    assert caught.value.where == "config.json"


@pytest.mark.parametrize("share", [0.0, 1.5, -0.5, "half", 0.2, float("nan")])
def test_an_impossible_share_is_refused(share: Any) -> None:
    """0.2 of 16 dimensions are 3, which do not pair."""
    with pytest.raises(UsageError, match="no even number"):
        rope_from_config({"partial_rotary_factor": share}, share=1.0)


def test_a_share_of_a_head_has_frequencies_of_its_own() -> None:
    """The config's share goes before the family's, in either spelling, and the tables are those of a smaller head."""
    half = rope_from_config({"rope_theta": 100.0, "partial_rotary_factor": 0.5}, share=0.25)
    new = rope_from_config({"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}, share=0.25)
    assert half == new
    assert half.rotated(16) == 8
    assert rope_from_config({}, share=0.25).rotated(16) == 4
    for part, whole in zip(rope_tables(half, 16, 5), rope_tables(Rope(100.0), 8, 5), strict=True):
        np.testing.assert_array_equal(part, whole)


def test_longrope_divides_by_what_the_context_asks_for() -> None:
    """Up to the original context the short divisors hold, beyond it the long ones; the magnitude is of both."""
    rope = rope_from_config(
        {"rope_theta": 1000.0, "max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
        | {"rope_scaling": LONGROPE}
    )
    magnitude = np.sqrt(1 + np.log(4) / np.log(1024))
    plain = frequencies(Rope(1000.0))
    for context, divisors in ((1024, np.ones(8)), (1025, np.arange(2, 10))):
        cos, sin = rope_tables(rope.at_context(context), 16, 2)
        np.testing.assert_allclose(np.hypot(cos, sin), magnitude, rtol=1e-6)
        np.testing.assert_allclose(np.arctan2(sin[1], cos[1]), plain / divisors, rtol=1e-5)
    assert Rope(1000.0).at_context(1 << 20) == Rope(1000.0)


@pytest.mark.torch
@pytest.mark.parametrize("context", [100, 300])
def test_longrope_tables_are_transformers_own(context: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = {
        "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 1024, "pad_token_id": 0,
        "original_max_position_embeddings": 256, "rope_theta": 1000.0, "rope_scaling": dict(LONGROPE),
    }  # fmt: skip
    ours = rope_tables(rope_from_config(settings).at_context(context), 16, context)
    config = transformers.AutoConfig.for_model("phi3", **settings)
    rotary = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(config)
    for mine, theirs in zip(ours, rotary(torch.zeros(1), torch.arange(context)[None]), strict=True):
        np.testing.assert_allclose(mine, theirs[0, :, :8].numpy(), atol=3e-5)


@pytest.mark.torch
@pytest.mark.parametrize("name", [n for n in tiny.llama_variants() if "llama" in n])
def test_tables_are_transformers_own(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = tiny.variants()[name]
    tiny.checkpoint(tmp_path, settings)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(200)[None])
    ours = rope_tables(rope_from_config(settings, head_dim), head_dim, 200)
    for mine, theirs in zip(ours, (cos, sin), strict=True):
        np.testing.assert_array_equal(theirs[0, :, : head_dim // 2], theirs[0, :, head_dim // 2 :])
        np.testing.assert_allclose(mine, theirs[0, :, : head_dim // 2].numpy(), atol=3e-5)
