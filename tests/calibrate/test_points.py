"""The path from safe to bold: levels are kept to, thresholds are observed float32 values, heads are paid for."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import PRICE, exit_table, token_table

from eecompile import contract as c
from eecompile.calibrate.points import LEVELS, Price, threshold_path, thresholds_along
from eecompile.calibrate.tables import ExitTable
from eecompile.runtime.heads import ExitRule
from eecompile.schema import Criterion

GATES: list[tuple[Criterion, ...]] = [
    ("learned",),
    ("max_prob",),
    ("entropy",),
    ("learned", "max_prob"),
    ("learned", "margin", "entropy"),
    ("max_prob", "margin", "entropy"),
    ("learned", "fixed"),
]


@pytest.mark.parametrize("gates", GATES, ids="+".join)
@pytest.mark.parametrize("seed", range(3))
def test_every_level_is_kept_to_and_bolder_levels_fire_more(gates: tuple[Criterion, ...], seed: int) -> None:
    table = exit_table(4, gates, 3000, seed)
    rates = []
    for level, thresholds in zip(LEVELS, thresholds_along(table, LEVELS, PRICE), strict=True):
        fired = table.fires(thresholds)
        assert (fired & ~table.agrees).sum() <= level * fired.sum()
        if thresholds is not None:
            assert fired.any()
            assert list(thresholds) == list(gates)
            check_thresholds(table, thresholds)
        rates.append(fired.mean())
    assert rates[-1] > 0.5
    assert len(gates) > 1 or all(a <= b for a, b in pairwise(rates))


def check_thresholds(table: ExitTable, thresholds: dict[Criterion, float]) -> None:
    """In range, float32, and observed, apart from the bounds that let everything pass."""
    for gate, threshold in thresholds.items():
        most = math.log(PRICE.vocab) if gate == "entropy" else 1.0
        assert 0 <= threshold <= most
        assert float(np.float32(threshold)) == threshold
        if gate in table.values and 0 < threshold < most - 1e-5:
            assert np.float32(threshold) in table.values[gate]


@pytest.mark.parametrize("gates", GATES, ids="+".join)
def test_tables_fire_as_the_runtime_does(gates: tuple[Criterion, ...]) -> None:
    table = exit_table(4, gates, 500, seed=1)
    for thresholds in [t for t in thresholds_along(table, LEVELS, PRICE) if t][::20]:
        rule = ExitRule.of(0, 4, thresholds)
        assert rule is not None
        head = [
            table.values.get(k, np.full(500, d, np.float32)) for k, d in zip(c.HEAD_CRITERIA, (1, 1, 0), strict=True)
        ]
        signs = (1, 1, -1)
        said = np.all([s * v > s * b for s, v, b in zip(signs, head, rule.bounds, strict=True)], axis=0) & table.usable
        confidence = table.values.get("learned", np.ones(500, np.float32))
        cheap = np.array([rule.passes_cheap(float(x)) for x in confidence])
        assert (table.passes_cheap(thresholds) == cheap).all()
        assert (table.fires(thresholds) == (cheap & said)).all()


@given(st.integers(0, 5), st.tuples(*[st.floats(0, 1, width=32)] * 6))
def test_safer_thresholds_only_take_fires_away(seed: int, levels: tuple[float, ...]) -> None:
    """With the union, this is why a loss that was tested holds for every safer policy."""
    table = exit_table(4, ("learned", "margin", "entropy"), 200, seed)
    bold = {"learned": min(levels[:2]), "margin": min(levels[2:4]), "entropy": 4.6 * max(levels[4:])}
    safe = {"learned": max(levels[:2]), "margin": max(levels[2:4]), "entropy": 4.6 * min(levels[4:])}
    assert not (table.fires(safe) & ~table.fires(bold)).any()  # type: ignore[arg-type]


def test_not_finite_or_out_of_range_never_fires() -> None:
    values = np.array([0.5, np.nan, np.inf, -np.inf, 1.5, 0.9], np.float32)
    table = ExitTable(1, ("learned",), {"learned": values}, np.ones(6, bool), np.ones(6, bool))
    assert table.fires({"learned": 0.4}).tolist() == [True, False, False, False, False, True]
    table = ExitTable(1, ("max_prob",), {"max_prob": values}, np.isfinite(values), np.ones(6, bool))
    assert not table.fires({"max_prob": 0.4})[[1, 2, 3]].any()
    assert (table.fires({"max_prob": 0.4}), table.fires(None))[1].sum() == 0
    thresholds = thresholds_along(table, [0.5], PRICE)[0]
    assert thresholds == {"max_prob": 0.0}, "all that is finite agrees"


def test_a_threshold_that_was_observed_does_not_fire_itself() -> None:
    values = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
    table = ExitTable(1, ("max_prob",), {"max_prob": values}, np.ones(4, bool), np.array([False, False, True, True]))
    assert thresholds_along(table, [0.1], PRICE)[0] == {"max_prob": float(np.float32(0.4))}


def test_an_exit_that_is_never_right_stays_closed_and_never_is_never() -> None:
    values = {"max_prob": np.linspace(0, 1, 50, dtype=np.float32)}
    wrong = ExitTable(1, ("max_prob",), values, np.ones(50, bool), np.zeros(50, bool))
    assert thresholds_along(wrong, LEVELS, PRICE) == [None] * len(LEVELS)
    right = ExitTable(1, ("max_prob", "never"), values, np.ones(50, bool), np.ones(50, bool))
    assert thresholds_along(right, LEVELS, PRICE) == [None] * len(LEVELS)
    assert not right.fires({"max_prob": 0.0, "never": 0.0}).any()


def test_a_fixed_exit_fires_everywhere_or_nowhere() -> None:
    agrees = np.arange(100) >= 30
    table = ExitTable(1, ("fixed",), {}, np.ones(100, bool), agrees)
    assert thresholds_along(table, [0.29, 0.3], PRICE) == [None, {"fixed": 0.0}]


def test_a_dear_head_makes_the_learned_gate_strict() -> None:
    table = exit_table(10, ("learned", "max_prob"), 5000, seed=3)
    cheap, dear = (thresholds_along(table, [0.1], Price(12, head, 100))[0] for head in (0.0, 8.0))
    assert cheap
    assert dear
    assert dear["learned"] > cheap["learned"]
    waste = [(table.passes_cheap(t) & ~table.fires(t)).sum() for t in (cheap, dear)]
    assert waste[1] < waste[0]


def test_the_path_goes_from_safe_to_bold_without_repeats() -> None:
    table = token_table({3: ("learned", "max_prob"), 6: ("margin",), 9: ("never",)})
    path = threshold_path(table, PRICE)
    assert len(path) > 20
    assert all(a[0] < b[0] and a[1] != b[1] for a, b in pairwise(path))
    assert all(thresholds[2] is None for _, thresholds in path)
    learned = [thresholds[0]["learned"] for _, thresholds in path if thresholds[0]]
    assert learned == sorted(learned, reverse=True)


def test_a_head_costs_what_its_matrix_weighs() -> None:
    class Model:
        layers, hidden, vocab, parameters = 30, 576, 49152, 134_515_008

    class Segment:
        layers = 15

    class Graphs:
        segments = (Segment, Segment)

    class Manifest:
        graphs = Graphs
        model = Model

    price = Price.of(Manifest)  # type: ignore[arg-type]
    assert price.head == pytest.approx(8.0, abs=0.1)
