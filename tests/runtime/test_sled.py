"""SLED's arithmetic against its formula in float64, and where it is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile.errors import NumericError, UsageError
from eecompile.runtime import Sampling
from eecompile.runtime.sled import evolve
from eecompile.runtime.trace import Tracer

PROMPT = [3, 1, 4, 1, 5, 9]
SLED = Sampling(sled=True)


def softmax(z: list[float]) -> list[float]:
    most = max(z)
    weights = [math.exp(x - most) for x in z]
    return [w / math.fsum(weights) for w in weights]


def cosine(a: list[float], b: list[float]) -> float:
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def reference(exits: list[list[float]], final: list[float], rate: float) -> list[float]:
    """The formula, number by number: s[n, i], w[n], m, and ten steps."""
    size = len(final)
    top = sorted(range(size), key=lambda i: (-final[i], i))[:10]
    s = []
    for z in exits:
        p, way = softmax(z), [a - b for a, b in zip(z, final, strict=True)]
        s.append([max(0.0, cosine([p[j] - (j == i) for j in range(size)], way)) ** 2 for i in top])
    sums = [math.fsum(row) for row in s]
    if not math.fsum(sums):
        return final
    weights = [each / math.fsum(sums) for each in sums]
    m = [
        math.fsum(w * row[k] / each for w, row, each in zip(weights, s, sums, strict=True) if each)
        for k in range(len(top))
    ]
    z = list(final)
    for step in range(10):
        p = softmax(z)
        z = [z[i] - rate * (1 - step / 10) * (p[i] - (m[top.index(i)] if i in top else 0.0)) for i in range(size)]
    return [z[i] if i in top else -100.0 for i in range(size)]


@given(
    vocab=st.integers(2, 40), exits=st.integers(1, 4), scale=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    seed=st.integers(0, 10_000), rate=st.sampled_from([2.0, 0.1, 10.0]),
)  # fmt: skip
def test_equals_the_formula(vocab: int, exits: int, scale: float, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    final = scale * rng.standard_normal(vocab)
    early = 0.5 * final + scale * rng.standard_normal((exits, vocab))
    np.testing.assert_allclose(evolve(early, final, rate), reference(early.tolist(), final.tolist(), rate), atol=1e-7)


def test_exits_that_say_the_same_change_nothing() -> None:
    final = np.random.default_rng(0).standard_normal(30)
    np.testing.assert_array_equal(evolve(np.stack([final, final]), final), final)


def test_the_exits_can_change_the_choice() -> None:
    """Exits that lead away from the first choice, and towards the second, make it the second."""
    final = np.full(12, -5.0)
    final[3], final[7] = 2.0, 1.9
    early = np.stack([final, final])
    early[:, 3] += 3.0  # on the way down the model turns away from it
    assert final.argmax() == 3
    assert evolve(early, final).argmax() == 7


@pytest.mark.parametrize("how", [SLED, Sampling(temperature=0.8, seed=5, sled=True)], ids=["greedy", "sampled"])
def test_a_session_chooses_from_evolved_logits(shelf: Any, how: Sampling) -> None:
    """Token by token, from logits recomputed by a trace of the emitted text: the first token is no exception."""
    opened = shelf.bundle(at=[1, 2, 3])
    ids = tiny.tokens(opened, PROMPT, 25, how)
    trace = Tracer(opened, boundaries=True).trace([*PROMPT, *ids][:-1])
    assert trace.boundaries is not None
    askers, head = opened.askers(1), opened.heads(4)["full"]
    for position, token in enumerate(ids, len(PROMPT) - 1):
        *rows, last = (b[position : position + 1] for b in trace.boundaries)
        ready = [asker(row).hidden.copy() for asker, row in zip(askers, rows, strict=True)]
        logits = head(np.concatenate([*ready, last]), logits=True).logits
        assert logits is not None
        evolved = evolve(logits[:-1], logits[-1])
        if how.greedy:
            assert token == evolved.argmax()
        else:
            from eecompile.runtime.sampling import sample

            assert token == sample(evolved.astype(np.float32), position + 1, how)
    assert ids != tiny.tokens(opened, PROMPT, 25, Sampling(how.temperature, seed=how.seed)), "it does make a difference"


def test_a_prompt_of_one_token(shelf: Any) -> None:
    opened = shelf.bundle(at=[2])
    assert len(tiny.tokens(opened, [7], 5, SLED)) == 5


def test_sled_is_refused_where_it_makes_no_sense(shelf: Any) -> None:
    opened = shelf.bundle(at=[1, 3])
    with pytest.raises(UsageError, match=r"not in mode exact(.|\n)*use mode full"):
        tiny.tokens(opened, PROMPT, 5, SLED, mode="exact")
    with pytest.raises(UsageError, match=r"needs exits(.|\n)*--exits"):
        tiny.tokens(shelf.bundle(), PROMPT, 5, SLED)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.config())
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.nan
    opened = tiny.open_bundle(tmp_path / "b", tiny.checkpoint(tmp_path / "c", tensors=tensors), [2])
    with pytest.raises(NumericError, match="not finite"):
        tiny.tokens(opened, PROMPT, 5, SLED)
