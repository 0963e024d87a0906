"""Closed-form fits find what was planted; the gate separates what can be; memory has a bound."""

import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.calibrate.gate import auc, gate_scores, train_gate
from eecompile.calibrate.rows import NormalEquations, RowCache

Float = NDArray[np.float32]


def planted(rows: int, size: int, noise: float, seed: int = 0) -> tuple[Float, Float, Float, Float]:
    """x, y = x W + b + noise, W, b."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((size, size)), rng.standard_normal(size)
    x = rng.standard_normal((rows, size)) * np.geomspace(0.3, 3, size) + 1
    y = x @ weight + bias + noise * rng.standard_normal((rows, size))
    return tuple(a.astype(np.float32) for a in (x, y, weight, bias))  # type: ignore[return-value]


def test_ridge_recovers_a_planted_map_whatever_the_chunks() -> None:
    x, y, weight, bias = planted(4000, 24, noise=0.01)
    one, many = NormalEquations(24), [NormalEquations(24), NormalEquations(24)]
    one.add(x, y)
    for i, start in enumerate(range(0, 4000, 37)):
        many[i % 2].add(x[start : start + 37], y[start : start + 37])
    for equations in (one, many[0] + many[1]):
        found, offset = equations.solve(ridge=1e-7)
        assert found.dtype == offset.dtype == np.float32
        np.testing.assert_allclose(found, weight, atol=5e-3)
        np.testing.assert_allclose(offset, bias, atol=5e-3)


def test_ridge_is_the_minimum_of_what_it_says() -> None:
    x, y, _, _ = planted(40, 8, noise=0.5)
    equations = NormalEquations(8)
    equations.add(x, y)
    weight, bias = equations.solve(ridge=0.3)
    penalty = 0.3 * np.trace(x.astype(np.float64).T @ x) / 8

    def objective(w: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(((x @ w + b - y) ** 2).sum() + penalty * ((w - np.eye(8)) ** 2).sum())

    best, rng = objective(weight.astype(np.float64), bias.astype(np.float64)), np.random.default_rng(0)
    for _ in range(20):
        assert objective(weight + 1e-3 * rng.standard_normal((8, 8)), bias + 1e-3 * rng.standard_normal(8)) > best


def test_with_too_few_rows_the_map_stays_near_the_identity() -> None:
    x, y, _, _ = planted(3, 64, noise=0.0)
    equations = NormalEquations(64)
    equations.add(x, y)
    weight, bias = equations.solve()
    assert np.isfinite(weight).all()
    direction = np.linalg.svd(x - x.mean(axis=0))[2][-1]  # one that the rows say nothing about
    np.testing.assert_allclose(direction @ weight, direction, atol=0.05)
    assert np.isfinite(bias).all()


def test_normal_equations_do_not_grow() -> None:
    equations = NormalEquations(16)
    sizes = equations.gram.nbytes + equations.cross.nbytes
    for seed in range(30):
        x, y, _, _ = planted(100, 16, noise=1.0, seed=seed)
        equations.add(x, y)
    assert equations.gram.nbytes + equations.cross.nbytes == sizes


def test_the_row_cache_draws_evenly_and_keeps_rows_with_their_tokens(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = RowCache(tmp_path, capacity=300, exits=2, size=4, seed=0)
    for document in range(200):
        number = np.arange(document * 17, document * 17 + 17)
        rows = np.stack([np.repeat(number[:, None] / 2, 4, axis=1), -np.repeat(number[:, None] / 2, 4, axis=1)], axis=1)
        cache.offer(rows.astype(np.float32), number, document)
    assert len(cache) == 300
    assert (tmp_path / "rows.f16").stat().st_size == 300 * 2 * 4 * 2
    np.testing.assert_allclose(cache.exit_rows(0)[:, 0], cache.final / 2, rtol=1e-3)
    np.testing.assert_allclose(cache.exit_rows(1)[:, 3], -cache.final / 2, rtol=1e-3)
    assert (cache.document == cache.final // 17).all()
    assert len(set(cache.final.tolist())) == 300
    assert cache.final.mean() == pytest.approx(1700, rel=0.1), "neither the first rows nor the last"


def test_the_row_cache_clips_what_float16_cannot_hold(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = RowCache(tmp_path, capacity=4, exits=1, size=2, seed=0)
    cache.offer(np.full((2, 1, 2), 1e9, np.float32), np.zeros(2, np.int64), 0)
    assert len(cache) == 2
    assert np.isfinite(cache.exit_rows(0)).all()


def gate_problem(rows: int, seed: int = 0) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Rows of very different scales; the target is a curved function of a few dimensions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 16))
    agrees = x[:, 0] + x[:, 1] ** 2 > 1
    return (x * np.geomspace(0.1, 100, 16) + 3).astype(np.float16), agrees


def test_the_gate_learns_a_planted_separable_problem() -> None:
    x, agrees = gate_problem(8000)
    held_out = np.arange(8000) % 5 == 0
    weights = train_gate(x, agrees, held_out)
    shapes = {name: (w.shape, w.dtype.name) for name, w in weights.items()}
    assert shapes == {name: (s, "float32") for name, s in
                      {"w1": (16, 32), "b1": (32,), "w2": (32, 1), "b2": (1,)}.items()}  # fmt: skip
    fresh, truth = gate_problem(4000, seed=1)
    score = auc(gate_scores(weights, fresh), truth)
    assert score is not None
    assert score > 0.97


def test_training_a_gate_twice_gives_the_same_gate() -> None:
    x, agrees = gate_problem(1000)
    held_out = np.arange(1000) % 5 == 0
    one, other = (train_gate(x, agrees, held_out, units=4, seed=7) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_gate_of_rows_that_never_move_or_always_agree_is_finite() -> None:
    x = np.full((200, 8), 5.0, np.float16)
    x[:, 0] = np.linspace(0, 1, 200)
    for agrees in (np.ones(200, bool), np.zeros(200, bool)):
        weights = train_gate(x, agrees, np.arange(200) % 5 == 0, units=4)
        assert all(np.isfinite(w).all() for w in weights.values())
        confident = gate_scores(weights, x) > 0
        assert confident.all() if agrees.all() else not confident.any()


def test_auc_counts_pairs() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(scores, positive) == pytest.approx(3.5 / 4)
    assert auc(scores, np.ones(4, bool)) is None
