"""SmolLM2-135M-Instruct: full mode's greedy tokens are transformers' own; exact mode's are full mode's in every
precision, with drafts made and refused on the way.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.trace import Tracer
from eecompile.student.student import open_student

INPUTS = Path(__file__).parents[2] / "build" / "inputs"
SMOLLM2 = INPUTS / "smollm2"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (SMOLLM2 / "model.safetensors").exists(), reason=f"no {SMOLLM2}: run `make inputs`"),
]

NEW, SHORT = 64, 48
EXITS = [6, 12, 18, 24]
DRAFTS = {6: None, 12: {"max_prob": 0.6}, 18: {"max_prob": 0.3}, 24: {"max_prob": 0.2}}
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain why the sky is blue to a child.",
    "Translate 'good morning' into Spanish, Italian and German.",
]


def texts(name: str, count: int) -> list[str]:
    """The first texts of one of the inputs."""
    lines = (INPUTS / "texts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def prompts(opened: Bundle) -> list[list[int]]:
    """Twenty prompts of 3 to 150 tokens: chats, sums, code, documentation, and bits of no particular sense."""
    text = opened.text
    assert text is not None
    chats = [text.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    sums = [text.encode("Question: " + t.split("\n")[0] + "\nAnswer:") for t in texts("gsm8k", 5)]
    code = [text.encode(t)[:70] for t in texts("humaneval", 4)]
    docs = [text.encode(t)[: 30 * n] for n, t in enumerate(texts("pydoc", 4), 1)]
    odd = [text.encode("1, 1, 2, 3, 5, 8,"), text.encode("Ünïcödé 🙂 漢字: "), [504, 3575, 282]]
    return [*chats, *sums, *code, *docs, *odd]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle of a precision, built when first asked for."""
    opened: dict[str, Bundle] = {}

    def bundle(precision: str) -> Bundle:
        if precision not in opened:
            path = tmp_path_factory.mktemp("smollm2") / precision
            opened[precision] = tiny.open_bundle(path, SMOLLM2, EXITS, precision=precision)
        return opened[precision]

    return bundle


@pytest.fixture(scope="module")
def full(built: Any) -> list[list[int]]:
    """What full mode answers to every prompt in float32, beyond the end of the text where it comes early."""
    return [tiny.tokens(built("fp32"), prompt, NEW, stop=()) for prompt in prompts(built("fp32"))]


@pytest.mark.torch
def test_greedy_tokens_are_transformers_own(built: Any, full: list[list[int]]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, asked = tiny.hugging_face(SMOLLM2), prompts(built("fp32"))
    model.generation_config.eos_token_id = None
    expected = [tiny.hugging_face_tokens(model, prompt, NEW) for prompt in asked]
    assert len(asked) >= 20
    assert {len(ids) for ids in expected} == {NEW}
    assert full == expected
    states, logits = tiny.hugging_face_states(model, asked[-4])
    trace = Tracer(built("fp32"), boundaries=True).trace(asked[-4])
    assert trace.boundaries is not None
    for layer, rows in zip([*EXITS, 30], trace.boundaries, strict=True):
        assert np.abs(rows - states[layer]).max() < 2e-4 * np.abs(states[layer]).max()
    np.testing.assert_array_equal(trace.final.token, logits.argmax(axis=1))


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_exact_is_full(built: Any, full: list[list[int]], precision: str) -> None:
    opened, drafted, rejected = built(precision), 0, 0
    asked = prompts(opened)
    for number, how in ((0, Sampling()), (10, Sampling()), (3, Sampling(0.7, 40, 0.95, seed=5))):
        known = precision == "fp32" and how.greedy
        expected = full[number][:SHORT] if known else tiny.tokens(opened, asked[number], SHORT, how, stop=())
        session = opened.session(mode="exact", thresholds=DRAFTS)
        generation = session.generate(asked[number], max_new_tokens=SHORT, sampling=how, stop=())
        assert [token.id for token in generation] == expected
        drafted, rejected = drafted + generation.stats.drafted, rejected + generation.stats.rejected
    assert drafted > rejected > 0


def test_text_is_whole(built: Any) -> None:
    """What is streamed is what the tokenizer makes of all the tokens at once."""
    opened = built("fp32")
    generation = opened.session().chat([{"role": "user", "content": QUESTIONS[0]}], max_new_tokens=NEW)
    assert "".join(token.text for token in generation) == opened.text.decode(generation.ids)
    assert "Paris" in opened.text.decode(generation.ids)


def test_the_checkpoint_is_what_it_says() -> None:
    student = open_student(SMOLLM2)
    spec = student.spec
    assert (spec.family, spec.layers, spec.hidden, spec.heads, spec.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (spec.tied, spec.vocab, spec.eos) == (True, 49152, (2,))
