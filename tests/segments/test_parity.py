"""Full mode is the model: greedy tokens, hidden states and logits against transformers in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.trace import Tracer
from eecompile.verify import verify_bundle
from eecompile.verify.rows import Walker

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS = [np.random.default_rng(seed).integers(0, tiny.VOCAB, n).tolist() for seed, n in enumerate((1, 30, 150))]
EXITS = [1, 3]
SAVED = [
    "llama-tied",
    "llama-llama3",
    "llama-yarn",
    "mistral-window",
    "qwen2-window",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "phi",
]
SAVED += ["phi3-longrope", "gemma3", "olmo3", "cohere2", "smollm3-window", "stablelm"]
NEW = 16


def assert_parity(opened: Bundle, model: Any) -> None:
    """Tokens of every prompt; hidden states at each exit, finished rows and logits of the longest."""
    for prompt in PROMPTS:
        assert tiny.tokens(opened, prompt, NEW) == tiny.hugging_face_tokens(model, prompt, NEW)
    states, expected = tiny.hugging_face_states(model, PROMPTS[-1])
    boundaries = Tracer(opened, boundaries=True).trace(PROMPTS[-1]).boundaries
    assert boundaries is not None
    for rows, layer in zip(boundaries, [*EXITS, len(states) - 1], strict=True):
        assert rows.shape == states[layer].shape
        assert np.abs(rows - states[layer]).max() < 1e-4 * np.abs(states[layer]).max()
    np.testing.assert_allclose(tiny.head_logits(opened, boundaries[-1]), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", tiny.variants())
def test_every_kind_of_model(shelf: Any, name: str) -> None:
    settings = tiny.variants()[name]
    assert_parity(shelf.bundle(settings, EXITS), tiny.hugging_face(shelf.checkpoint(settings)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3-biases"])
def test_half_precision_checkpoints(shelf: Any, name: str, dtype: str) -> None:
    settings = tiny.variants()[name]
    model = tiny.hugging_face(shelf.checkpoint(settings, dtype=dtype))
    assert_parity(shelf.bundle(settings, EXITS, dtype=dtype), model)


@pytest.mark.parametrize("name", ["llama-tied", "mistral-window", "qwen2", "qwen3"])
def test_a_float16_bundle_of_a_float16_checkpoint_loses_nothing(shelf: Any, name: str) -> None:
    settings = tiny.variants()[name]
    model = tiny.hugging_face(shelf.checkpoint(settings, dtype="float16"))
    assert_parity(shelf.bundle(settings, EXITS, dtype="float16", precision="fp16"), model)


@pytest.mark.parametrize("name", SAVED)
def test_what_transformers_saves_in_shards(shelf: Any, tmp_path: Path, name: str) -> None:
    """transformers writes its own spelling of the config, several shards, and drops a tied head."""
    model = tiny.hugging_face(shelf.checkpoint(tiny.variants()[name]))
    model.save_pretrained(tmp_path / "saved", max_shard_size="40KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    assert_parity(tiny.open_bundle(tmp_path / "bundle", tmp_path / "saved", EXITS), model)


def test_learned_positions_are_known_to_the_last(shelf: Any) -> None:
    """In the whole context of a GPT-2, with padding rows that stand past it."""
    ids = np.random.default_rng(7).integers(0, tiny.VOCAB, 256).tolist()
    opened = shelf.bundle(tiny.gpt2(), EXITS, minimum_rows=4)
    states, _ = tiny.hugging_face_states(tiny.hugging_face(shelf.checkpoint(tiny.gpt2())), ids)
    found = Walker(opened).walk(ids, [128, 126, 1, 1])
    assert np.abs(found.finished - states[-1]).max() < 1e-4 * np.abs(states[-1]).max()
    with pytest.raises(UsageError, match="context 257 is not from 1 to 256"):
        shelf.bundle(tiny.gpt2(), context=257)


def test_a_context_beyond_the_original_one_has_the_long_frequencies(shelf: Any, tmp_path: Path) -> None:
    """transformers takes them once a prompt is longer than the original context."""
    settings = tiny.variants()["phi3-longrope"] | {"original_max_position_embeddings": 128}
    model = tiny.hugging_face(shelf.checkpoint(settings))
    long, short = (shelf.bundle(settings, EXITS, context=context) for context in (256, 128))
    for opened, prompt, other in ((long, PROMPTS[-1], short), (short, PROMPTS[1], long)):
        states, _ = tiny.hugging_face_states(model, prompt)
        boundaries = Tracer(opened, boundaries=True).trace(prompt).boundaries
        assert boundaries is not None
        assert np.abs(boundaries[-1] - states[-1]).max() < 1e-4 * np.abs(states[-1]).max()
        assert other.manifest.digest != opened.manifest.digest
    report = verify_bundle(long.files.path, checkpoint=shelf.checkpoint(settings), tokens=6)
    assert not [check for check in report.checks if not check.passed]
    assert report.references[1].startswith("numpy float32 on the checkpoint (rotated")


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt2", "transformer."), ("gpt_neox", "gpt_neox."), ("gemma3", "model.")]
)
def test_base_models_and_old_buffers(shelf: Any, tmp_path: Path, name: str, prefix: str) -> None:
    """Some checkpoints leave the base model's prefix out, and some keep masks and frequencies that nothing reads."""
    settings = tiny.variants()[name]
    tensors = {n.removeprefix(prefix): t for n, t in tiny.weights(settings).items()}
    buffers = (
        "h.0.attn.bias",
        "h.0.attn.masked_bias",
        "layers.0.attention.bias",
        "layers.0.attention.rotary_emb.inv_freq",
    )
    tensors |= {buffer: np.ones(3, np.float32) for buffer in buffers}
    opened = tiny.open_bundle(tmp_path / "bundle", tiny.checkpoint(tmp_path / "model", settings, tensors), EXITS)
    expected = shelf.bundle(settings, EXITS).manifest
    assert {n: info.sha256 for n, info in opened.manifest.files.items()} == {
        n: info.sha256 for n, info in expected.files.items()
    }


def test_a_prompt_may_come_in_any_number_of_passes(shelf: Any) -> None:
    """The first rows of a long prompt are what they are in a short one, and what transformers says."""
    opened = shelf.bundle(tiny.config(), EXITS)
    model = tiny.hugging_face(shelf.checkpoint(tiny.config()))
    states, _ = tiny.hugging_face_states(model, PROMPTS[-1])
    stairs = Staircase(opened.manifest, opened.graphs)
    for start, stop in ((0, 7), (7, 8), (8, 100), (100, 101)):
        stairs.append(PROMPTS[-1][start:stop])
        rows = stairs.run_full()
        assert np.abs(rows - states[-1][start:stop]).max() < 1e-4 * np.abs(states[-1]).max()
