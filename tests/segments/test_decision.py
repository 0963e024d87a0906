"""The exit decision: one arithmetic, compared with float64; strict thresholds; nothing that is not finite fires."""

from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eecompile import contract as c
from eecompile.segments.decision import exit_decision
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook

Decide = Any
FLOATS = st.floats(-80, 80, width=32)
ODD = st.one_of(FLOATS, st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38]))


@pytest.fixture(scope="session")
def decide(tmp_path_factory: pytest.TempPathFactory) -> Decide:
    """logits [N, V], thresholds [N, 3] -> the five outputs by name."""
    folder = tmp_path_factory.mktemp("decision")
    g = GraphWriter("decision", WeightBook(folder))
    g.input(c.LOGITS, "float32", "N", "V")
    g.input(c.THRESHOLDS, "float32", "N", 3)
    outputs = exit_decision(g, c.LOGITS, c.THRESHOLDS)
    for value, dtype in zip(outputs, ("int64", "float32", "float32", "float32", "bool"), strict=True):
        g.output(value, value, dtype, "N")  # type: ignore[arg-type]
    g.save(folder / "decision.onnx")
    session = tiny.ort_session(folder / "decision.onnx")

    def run(logits: Any, thresholds: Any = None) -> dict[str, Any]:
        logits = np.asarray(logits, np.float32)
        bounds = np.empty((len(logits), 3), np.float32)
        bounds[:] = c.NO_BOUND if thresholds is None else thresholds
        values = session.run(list(outputs), {c.LOGITS: logits, c.THRESHOLDS: bounds})
        return dict(zip(outputs, values, strict=True))

    return run


def exactly(logits: Any) -> tuple[Any, Any, Any, Any]:
    """Token, max_prob, margin and entropy in float64."""
    x = np.asarray(logits, np.float64)
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    ordered = np.sort(p, axis=-1)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
    return x.argmax(axis=-1), ordered[:, -1], ordered[:, -1] - ordered[:, -2], entropy


@given(logits=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 40)), elements=FLOATS))
def test_equals_float64(decide: Decide, logits: Any) -> None:
    out = decide(logits)
    token, max_prob, margin, entropy = exactly(logits)
    np.testing.assert_array_equal(out[c.TOKEN], token)
    np.testing.assert_allclose(out[c.MAX_PROB], max_prob, atol=1e-5)
    np.testing.assert_allclose(out[c.MARGIN], margin, atol=1e-5)
    np.testing.assert_allclose(out[c.ENTROPY], entropy, atol=1e-4)
    assert out[c.EXIT_FLAG].all()


def test_a_large_vocabulary(decide: Decide) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 49152)).astype(np.float32) * 3
    out = decide(logits)
    token, max_prob, margin, entropy = exactly(logits)
    np.testing.assert_array_equal(out[c.TOKEN], token)
    np.testing.assert_allclose(out[c.MAX_PROB], max_prob, rtol=1e-4)
    np.testing.assert_allclose(out[c.MARGIN], margin, rtol=1e-3)
    np.testing.assert_allclose(out[c.ENTROPY], entropy, rtol=1e-4)


def test_the_first_of_equals_is_taken(decide: Decide) -> None:
    out = decide([[1, 5, 5, 5], [2, 2, 2, 2]])
    assert out[c.TOKEN].tolist() == [1, 0]
    np.testing.assert_array_equal(out[c.MARGIN], [0, 0])


@given(logits=hnp.arrays(np.float32, (1, 9), elements=FLOATS), criterion=st.integers(0, 2), data=st.data())
def test_thresholds_are_strict(decide: Decide, logits: Any, criterion: int, data: st.DataObject) -> None:
    """A row fires where its own value beats each bound; equality does not."""
    out = decide(logits)
    value = out[c.HEAD_CRITERIA[criterion]][0]
    toward = -np.inf if criterion < 2 else np.inf
    bounds = np.array(c.NO_BOUND, np.float32)
    bounds[criterion] = value
    assert not decide(logits, bounds)[c.EXIT_FLAG][0]
    bounds[criterion] = np.nextafter(value, np.float32(toward))
    if abs(bounds[criterion]) > 1e-37 and abs(value) > 1e-37:  # subnormal numbers may count as zero
        assert decide(logits, bounds)[c.EXIT_FLAG][0]


@given(
    logits=hnp.arrays(np.float32, (4, 6), elements=FLOATS),
    bounds=hnp.arrays(np.float32, (4, 3), elements=st.floats(0, 1, width=32)),
)
def test_every_gate_has_to_fire(decide: Decide, logits: Any, bounds: Any) -> None:
    out = decide(logits, bounds)
    expected = (out[c.MAX_PROB] > bounds[:, 0]) & (out[c.MARGIN] > bounds[:, 1]) & (out[c.ENTROPY] < bounds[:, 2])
    np.testing.assert_array_equal(out[c.EXIT_FLAG], expected)


def test_never_never_fires(decide: Decide) -> None:
    assert not decide([[100, 0, 0]], c.NEVER)[c.EXIT_FLAG][0]


@pytest.mark.parametrize("criterion", range(3))
def test_a_threshold_that_is_nan_never_fires(decide: Decide, criterion: int) -> None:
    bounds = np.array(c.NO_BOUND, np.float32)
    bounds[criterion] = np.nan
    assert not decide([[100, 0, 0]], bounds)[c.EXIT_FLAG][0]


@given(logits=hnp.arrays(np.float32, (3, 7), elements=ODD))
def test_a_row_with_nan_or_infinity_never_fires_nor_spreads(decide: Decide, logits: Any) -> None:
    out = decide(logits)
    bad = np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1) | np.isneginf(logits).all(axis=1)
    assert not out[c.EXIT_FLAG][bad].any()
    assert not np.isfinite(out[c.MAX_PROB][bad]).any()
    assert np.isfinite(out[c.MAX_PROB][~bad]).all()
    assert (out[c.TOKEN] >= 0).all()
    assert (out[c.TOKEN] < 7).all()
