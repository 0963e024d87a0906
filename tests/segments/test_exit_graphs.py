"""Exit and small-head graphs against float64, in every precision; a row's bits do not depend on its neighbours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.bundle.gates import gate_inputs
from eecompile.runtime import Bundle
from eecompile.runtime.walk import Walk, router_scores
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec, load_exits

LOW = HeadShape(name="thin", kind="low_rank", rank=32, bias=True)
PLAIN = HeadShape(name="plain", kind="low_rank", rank=32)
SHORT = HeadShape(name="few", kind="shortlist", tokens=[5, 90, 17, 3, 64, 127, 0, 31, 32])
HEADS = [LOW, PLAIN, SHORT]
EXITS = [
    ExitSpec(
        layer=1, adapter="affine", gates=["router", "predictor", "saturation"], head="few",
        router=RouterShape(choices=3, units=5), predictor=PredictorShape(head="few", units=7),
    ),
    ExitSpec(layer=2, gates=["saturation", "router", "learned"], gate_units=3, head="thin"),
    ExitSpec(layer=3, adapter="affine", gates=["predictor", "router"], router=RouterShape(choices=2), head="plain",
             predictor=PredictorShape(head="few", units=6)),
]  # fmt: skip
ROWS = np.random.default_rng(3).standard_normal((3, 9, 32)).astype(np.float32)  # at each exit
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2, "int8": 0.15, "int4": 1.5}


@pytest.fixture(scope="module")
def source(shelf: Any) -> Path:
    path: Path = shelf.checkpoint(exits=EXITS, heads=HEADS)
    return path


def bundle_of(shelf: Any, precision: str = "fp32") -> Bundle:
    opened: Bundle = shelf.bundle(exits=EXITS, heads=HEADS, precision=precision)
    return opened


def normed(rows: Any, source: Path) -> Any:
    tensors = tiny.weights(tiny.config())
    x = rows.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * tensors["model.norm.weight"]


def ready(exit_: ExitSpec, rows: Any, source: Path) -> Any:
    """What an exit gives to a head, in float64."""
    x = normed(rows, source)
    if exit_.adapter == "norm":
        return x
    exits = load_exits(source)
    return x @ exits.tensor(exit_.layer, "adapter.weight") + exits.tensor(exit_.layer, "adapter.bias")


def head_logits(head: HeadShape, x: Any, source: Path) -> Any:
    matrix = tiny.weights(tiny.config())["lm_head.weight"].astype(np.float64)
    if head.kind == "shortlist":
        return x @ matrix[head.tokens].T
    store = load_exits(source).store
    assert store is not None
    down, up = (store.read(f"head.{head.name}.{part}").astype(np.float64) for part in ("down", "up"))
    return x @ down.T @ up.T + (store.read(f"head.{head.name}.bias") if head.bias else 0)


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.name)
def test_small_heads(shelf: Any, source: Path, head: HeadShape, precision: str) -> None:
    opened = bundle_of(shelf, precision)
    x = normed(ROWS[0], source).astype(np.float32)
    expected = head_logits(head, x.astype(np.float64), source)
    said = opened.heads(9)[head.name](x, logits=True)
    assert said.logits is not None
    assert said.logits.shape == expected.shape
    assert np.abs(said.logits - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()
    tokens = np.array(head.tokens or range(tiny.VOCAB))
    np.testing.assert_array_equal(said.token, tokens[said.logits.argmax(axis=1)])
    p = np.exp(said.logits.astype(np.float64) - said.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(said.max_prob, 1 / p.sum(axis=1), rtol=1e-4)
    assert set(said.token.tolist()) <= set(tokens.tolist())


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.name)
def test_a_row_of_a_small_head_is_the_same_in_any_company(shelf: Any, head: HeadShape, precision: str) -> None:
    run = bundle_of(shelf, precision).heads(9)[head.name]
    whole = run(ROWS[0], logits=True).logits
    assert whole is not None
    whole = whole.copy()
    for width in (1, 2, 5):
        for start in (0, 3):
            part = run(ROWS[0][start : start + width], logits=True).logits
            np.testing.assert_array_equal(part, whole[start : start + width])


def gelu(x: Any) -> Any:
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def test_cheap_gates_against_float64(shelf: Any, source: Path) -> None:
    opened, exits = bundle_of(shelf), load_exits(source)
    askers, walk = opened.askers(9), Walk(9)
    said = [asker(ROWS[i], walk) for i, asker in enumerate(askers[:2])]
    cosine = (ROWS[0] * ROWS[1]).sum(1) / np.linalg.norm(ROWS[0], axis=1) / np.linalg.norm(ROWS[1], axis=1)
    assert np.isnan(said[0].values["saturation"]).all(), "there is nothing before the first exit"
    np.testing.assert_allclose(said[1].values["saturation"], cosine, atol=1e-6)

    w = {part: exits.tensor(1, f"router.{part}").astype(np.float64) for part in ("w1", "b1", "w2", "b2")}
    z = gelu(ROWS[0].astype(np.float64) @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
    np.testing.assert_allclose(said[0].values["router"], 1 / (1 + np.exp(z[:, 1:].max(1) - z[:, 0])), atol=1e-5)
    np.testing.assert_allclose(said[1].values["router"], 1 / (1 + np.exp(z[:, 2] - z[:, :2].max(1))), atol=1e-5)
    third = askers[2](ROWS[2], walk)
    own = ROWS[2].astype(np.float64) @ exits.tensor(3, "router.w2") + exits.tensor(3, "router.b2")
    np.testing.assert_allclose(third.values["router"], 1 / (1 + np.exp(own[:, 1] - own[:, 0])), atol=1e-5)


def test_the_predictor_against_float64(shelf: Any, source: Path) -> None:
    """Candidates come from the first exit that is asked; the second sees how their probabilities moved."""
    opened, exits = bundle_of(shelf), load_exits(source)
    askers, walk = opened.askers(9), Walk(9)
    first = head_logits(SHORT, ready(EXITS[0], ROWS[0], source), source)
    candidates = np.argsort(-first, axis=1)[:, :4]
    last = np.zeros((9, 4))
    for i in (0, 2):
        logits = head_logits(SHORT, ready(EXITS[i], ROWS[i], source), source)
        z = np.take_along_axis(logits, candidates, axis=1)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        features = np.concatenate([z, p, p - last], axis=1)
        w = {part: exits.tensor(EXITS[i].layer, f"predictor.{part}") for part in ("w1", "b1", "w2", "b2")}
        score = np.maximum(features @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
        said = askers[i](ROWS[i], walk)
        np.testing.assert_allclose(said.values["predictor"], 1 / (1 + np.exp(-score[:, 0])), atol=1e-4)
        np.testing.assert_array_equal(said.candidates, np.array(SHORT.tokens)[candidates])
        last = p


def test_gate_weights_are_inputs_of_the_policy(shelf: Any) -> None:
    opened = bundle_of(shelf)
    for info, chosen, graph in zip(
        opened.manifest.exits, opened.files.policy.exits, opened.manifest.graphs.exits, strict=True
    ):
        weights = gate_inputs(chosen, info, 32)
        assert set(weights) <= {t.name for t in graph.inputs}
        assert {kind.split("_")[0] for kind in weights} == set(info.gate_sizes(32))


def test_a_router_prefers_its_first_choice_at_one_half() -> None:
    z = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    scores = np.stack([router_scores(z, depth) for depth in range(4)], axis=1)
    assert (np.diff(scores, axis=1) >= 0).all(), "a deeper exit is never less enough"
    np.testing.assert_array_equal(scores > 0.5, z.argmax(axis=1)[:, None] <= np.arange(4))
