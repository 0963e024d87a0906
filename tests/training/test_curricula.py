"""Layer dropout, curricula, weights, warm-up, learning rates and layer maps against the papers' formulas."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from eecompile_training.curricula import (
    dropout_rates,
    dropped_layers,
    enabled_exits,
    exit_weights,
    learning_rate,
    warmed,
)
from eecompile_training.distill_config import Curriculum, LayerDropout, LayerMap
from eecompile_training.layer_maps import dynamic_map, fixed_map
from eecompile_training.settings import OptimConfig

from eecompile.errors import UsageError

pytestmark = pytest.mark.torch


def test_layer_dropout_grows_with_depth_and_time() -> None:
    fine = dropout_rates(LayerDropout(p_max=0.1), 5, 3, 10)
    assert fine == pytest.approx([(math.exp(n * math.log(2) / 4) - 1) * 0.1 for n in range(5)])
    assert fine[0] == 0
    assert fine[4] == pytest.approx(0.1)
    scratch = [dropout_rates(LayerDropout(p_max=0.1, schedule="exponential"), 5, t, 10)[4] for t in (0, 5, 9)]
    assert scratch == pytest.approx([0, 0.1 * (math.exp(5 * math.log(2) / 9) - 1), 0.1])


def test_a_row_skips_layers_as_often_as_the_rates_say_wherever_it_is() -> None:
    rates = [0.0, 0.1, 0.5, 1.0]
    drawn = np.stack([dropped_layers(rates, range(8), 0, step) for step in range(500)])
    assert drawn.mean(axis=(0, 2)) == pytest.approx(rates, abs=0.02)
    assert np.array_equal(dropped_layers(rates, range(4, 8), 3, 9), dropped_layers(rates, range(8), 3, 9)[:, 4:])


def test_rotation_trains_every_r_th_exit_and_gradual_opens_from_the_top() -> None:
    rotation = [enabled_exits(Curriculum(kind="rotational", every=3), 7, t, 100) for t in range(4)]
    assert rotation == [[0, 3, 6], [1, 4], [2, 5], [0, 3, 6]]
    gradual = [enabled_exits(Curriculum(kind="gradual"), 4, t, 80) for t in (0, 9, 10, 20, 30, 79)]
    assert gradual == [[3], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]  # one more each T / 2L = 10 steps
    assert enabled_exits(Curriculum(), 3, 5, 9) == [0, 1, 2]


def test_layerskip_weights_are_normalised_over_those_that_are_on() -> None:
    s, total = 0.2, 6
    e = [s * sum(range(layer + 1)) for layer in range(total - 1)] + [total - 1 + s * sum(range(total - 1))]
    weights, last = exit_weights("layerskip", [1, 2, 3, 4, 5], total, s=s, enabled=[1, 3])
    whole = e[1] + e[3] + e[5]
    assert weights == pytest.approx([0, e[1] / whole, 0, e[3] / whole, 0])
    assert last == pytest.approx(e[5] / whole)


def test_weights_by_index_and_as_given() -> None:
    weights, last = exit_weights("index", [6], 24)  # FREE: (s CE_s + L CE_L) / (s + L)
    assert (weights, last) == (pytest.approx([6 / 30]), pytest.approx(24 / 30))
    weights, last = exit_weights("index", [1, 2, 3], 4)  # PABEE: sum j CE_j / sum j
    assert [*weights, last] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert exit_weights("explicit", [8, 16], 32, weights=[0.1, 0.2]) == ([0.1, 0.2], 1.0)
    assert exit_weights("equal", [8, 16], 32, enabled=[1]) == ([0.0, 1.0], 1.0)


def test_warm_up_and_learning_rates() -> None:
    assert [warmed(t, 4, "linear") for t in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [warmed(t, 4, "cosine") for t in (0, 2, 4)] == pytest.approx([0, 0.5, 1])
    assert warmed(0, 0, "linear") == 1
    config = OptimConfig(lr=2.0, warmup=4, schedule="cosine", floor=0.1)
    assert [learning_rate(config, t, 12) for t in (0, 3, 4, 8, 12)] == pytest.approx([0.5, 2, 2, 1.1, 0.2])
    linear = OptimConfig(lr=2.0, schedule="linear")
    assert [learning_rate(linear, t, 4) for t in range(4)] == pytest.approx([2, 1.5, 1, 0.5])


def test_fixed_layer_maps() -> None:
    layers = [1, 2, 3, 4]
    assert fixed_map(LayerMap(kind="uniform"), layers, 4, 10) == {1: 2, 2: 5, 3: 8, 4: 10}
    assert fixed_map(LayerMap(kind="last"), layers, 4, 10) == {1: 7, 2: 8, 3: 9, 4: 10}
    assert fixed_map(LayerMap(kind="skip"), layers, 4, 10) == {1: 2, 2: 4, 3: 6, 4: 8}
    assert fixed_map(LayerMap(kind="explicit", pairs={2: 9}), [2], 4, 10) == {2: 9}
    with pytest.raises(UsageError, match="layer 1 nothing"):
        fixed_map(LayerMap(kind="last"), [1], 10, 4)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 999))
def test_the_dynamic_map_is_the_cheapest_monotone_one(layers: int, others: int, seed: int) -> None:
    distances = np.random.default_rng(seed).random((layers, others))
    found = dynamic_map(distances)
    assert found == sorted(found)
    monotone = [m for m in itertools.product(range(others), repeat=layers) if list(m) == sorted(m)]
    cheapest = min(sum(distances[i, j] for i, j in enumerate(m)) for m in monotone)
    assert sum(distances[i, j] for i, j in enumerate(found)) == pytest.approx(cheapest)
