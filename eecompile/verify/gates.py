"""Saturation, routers and predictors, recomputed in float64 from the engines' own rows."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.gates import gate_inputs
from eecompile.runtime import Bundle
from eecompile.shapes import router_of
from eecompile.verify.heads import small_head_logits
from eecompile.verify.parity import Walks
from eecompile.verify.report import Check, Figure, at_most

Double = NDArray[np.float64]
GATES = ("saturation", "router", "predictor")
BOUNDS = {"saturation": 1e-5, "router": 1e-4, "predictor": 1e-3}  # [2e-7, 5e-6, 4e-5 on SmolLM2 in fp32]


def check_gates(bundle: Bundle, walks: Sequence[Walks]) -> list[Check]:
    """One check for each exit with such a gate: the largest difference of what it goes by.

    Predictors of quantised bundles are left out: their candidates come from logits that the kernels round.
    """
    quantised = bundle.manifest.precision in c.QUANTISED
    checks = []
    for i, info in enumerate(bundle.manifest.exits):
        wanted = [gate for gate in GATES if gate in info.gates and not (gate == "predictor" and quantised)]
        if not wanted:
            continue
        figures: dict[str, Figure] = {}
        for gate in wanted:
            expected = np.concatenate([_VALUES[gate](bundle, i, w) for w in walks])
            actual = np.concatenate([w.prefill.exits[i].more[gate] for w in walks]).astype(np.float64)
            known = np.isfinite(expected)
            same = bool((np.isfinite(actual) == known).all())
            figures[gate] = float(np.abs(actual - expected)[known].max(initial=0.0)) if same else float("inf")
        passed = all(figures[gate] <= BOUNDS[gate] for gate in wanted)
        tolerance = {str(gate): at_most(BOUNDS[gate]) for gate in wanted}
        checks.append(Check(f"gates_{info.layer}", passed, figures, tolerance, "cheap gates against float64"))
    return checks


def _hidden(bundle: Bundle, exit_: int, walk: Walks) -> Double:
    return walk.prefill.hidden[bundle.manifest.exits[exit_].layer].astype(np.float64)


def _saturation(bundle: Bundle, exit_: int, walk: Walks) -> Double:
    now = _hidden(bundle, exit_, walk)
    if not exit_:
        return np.full(len(now), np.nan)
    before = _hidden(bundle, exit_ - 1, walk)
    sizes = np.linalg.norm(now, axis=1) * np.linalg.norm(before, axis=1)
    return np.asarray((now * before).sum(axis=1) / sizes, np.float64)


def _router(bundle: Bundle, exit_: int, walk: Walks) -> Double:
    source = router_of(bundle.manifest.exits, exit_)
    assert source is not None
    x, w = _hidden(bundle, source, walk), _weights(bundle, source, c.ROUTER)
    if "w1" in w:
        inner = x @ w["w1"] + w["b1"]
        x = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    z, depth = x @ w["w2"] + w["b2"], exit_ - source + 1
    return np.asarray(1 / (1 + np.exp(z[:, depth:].max(axis=1) - z[:, :depth].max(axis=1))), np.float64)


def _predictor(bundle: Bundle, exit_: int, walk: Walks) -> Double:
    """The first predictor chooses the candidates; each sees how their probabilities moved since the one before."""
    shape = bundle.manifest.exits[exit_].predictor
    assert shape is not None
    head = small_head_logits(bundle, shape.head)
    predictors = [i for i in range(exit_ + 1) if bundle.manifest.exits[i].predictor is not None]
    candidates, local = np.empty((0, 0), np.int64), np.zeros(1)
    for i in predictors:
        logits = head(walk.prefill.exits[i].hidden).astype(np.float64)
        if i == predictors[0]:
            candidates = np.argsort(-logits, axis=1, kind="stable")[:, : c.CANDIDATE_COUNT]
        z, last = np.take_along_axis(logits, candidates, axis=1), local
        local = np.exp(z - z.max(axis=1, keepdims=True))
        local = local / local.sum(axis=1, keepdims=True)
    w = _weights(bundle, exit_, c.PREDICTOR)
    inner = np.maximum(np.concatenate([z, local, local - last], axis=1) @ w["w1"] + w["b1"], 0)
    return np.asarray(1 / (1 + np.exp(-(inner @ w["w2"] + w["b2"])[:, 0])), np.float64)


def _weights(bundle: Bundle, exit_: int, kind: str) -> Mapping[str, Double]:
    info, chosen = bundle.manifest.exits[exit_], bundle.files.policy.exits[exit_]
    inputs = gate_inputs(chosen, info, bundle.manifest.model.hidden)
    return {n.removeprefix(f"{kind}_"): a.astype(np.float64) for n, a in inputs.items() if n.startswith(kind)}


_VALUES = {"saturation": _saturation, "router": _router, "predictor": _predictor}
