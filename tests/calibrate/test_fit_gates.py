"""Small heads are the best of their kind; routers and predictors are fitted; end to end, exits keep their risk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_fit_exits import chosen_point, forced, write_documents

from eecompile.calibrate.documents import load_documents
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.fit_gates import predictor_features
from eecompile.calibrate.gate import gate_scores, train_gate
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.rows import NormalEquations
from eecompile.calibrate.small_heads import HeadMatrix, fit_low_rank, fit_shortlist
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle
from eecompile.runtime.trace import Tracer
from eecompile.student.exits import load_exits
from eecompile.student.student import open_student

RISK = 0.3
PLANS = {
    "patience": ExitPlan.of(["patience", "max_prob"], "shortlist", tokens=100),
    "saturation": ExitPlan.of(["saturation", "margin"], "low_rank", rank=16),
    "router": ExitPlan.of(["router"], "shortlist", tokens=90),
    "predictor": ExitPlan.of(["predictor"], tokens=90),
    "several": ExitPlan.of(["learned", "router", "predictor", "max_prob"], "low_rank", rank=24),
    "decay": ExitPlan.of(["max_prob"], schedule="decay"),
    "adaptive": ExitPlan.of(["margin"], "shortlist", tokens=100, schedule="adaptive"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("gates") / "checkpoint", gain=0.25)


@pytest.fixture(scope="module")
def matrix(checkpoint: Path) -> HeadMatrix:
    return HeadMatrix.of(open_student(checkpoint))


def test_a_shortlist_is_of_the_most_frequent_tokens(matrix: HeadMatrix) -> None:
    counts = np.random.default_rng(0).integers(0, 50, tiny.VOCAB)
    head = fit_shortlist(matrix, counts, 40)
    assert min(counts[head.shape.tokens]) >= max(np.delete(counts, head.shape.tokens))
    assert head.shape.tokens == sorted(set(head.shape.tokens))
    x = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
    whole = x @ matrix.rows(np.arange(tiny.VOCAB)).T
    np.testing.assert_allclose(head.logits(x), whole[:, head.shape.tokens], rtol=1e-5)
    assert (head.tokens(x) == np.array(head.shape.tokens)[whole[:, head.shape.tokens].argmax(axis=1)]).all()
    assert len(fit_shortlist(matrix, counts, 10_000).shape.tokens) == tiny.VOCAB


@pytest.mark.parametrize("rank", [4, 31, 32])
def test_no_other_map_of_that_rank_has_a_smaller_error(matrix: HeadMatrix, rank: int) -> None:
    """The oracle is the truncated SVD of the centred logits themselves (Eckart-Young)."""
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((400, 32)) @ rng.standard_normal((32, 32)) + 2).astype(np.float32)
    sums, same = NormalEquations(32), (np.eye(32, dtype=np.float32), np.full(32, 0.5, np.float32))
    sums.add(rows, rows)
    head, x = fit_low_rank(matrix, [(sums, same)], rank), rows + np.float32(0.5)
    logits = x.astype(np.float64) @ matrix.rows(np.arange(tiny.VOCAB)).T
    centred = logits - logits.mean(axis=0)
    least = float((np.linalg.svd(centred, compute_uv=False)[rank:] ** 2).sum())
    error = float(((head.logits(x) - logits) ** 2).sum())
    assert error <= least * 1.001 + 1e-5 * float((centred**2).sum())
    assert head.tensors["down"].shape == (rank, 32)
    assert head.tensors["up"].shape == (tiny.VOCAB, rank)


def test_a_router_learns_depths_and_needs_no_layer_between() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6000, 12))
    depth = (x[:, 0] + x[:, 1] > -0.5).astype(int) + (x[:, 0] + x[:, 1] > 0.5)
    rows = (x * np.geomspace(1, 1000, 12) + 3).astype(np.float16)
    weights = train_gate(rows, depth, np.arange(6000) % 5 == 0, units=0, outputs=3)
    assert {name: w.shape for name, w in weights.items()} == {"w2": (12, 3), "b2": (3,)}
    scores = gate_scores(weights, rows)
    assert (scores.argmax(axis=1) == depth).mean() > 0.9
    again = train_gate(rows, depth, np.arange(6000) % 5 == 0, units=0, outputs=3)
    assert all((again[name] == weights[name]).all() for name in weights)


def test_relu_gates_learn_what_is_curved() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((6000, 12)).astype(np.float32)
    right = np.abs(x[:, 0]) > 0.8
    weights = train_gate(x, right, np.arange(6000) % 5 == 0, units=64, activation="relu")
    assert ((gate_scores(weights, x, "relu") > 0) == right).mean() > 0.9


def test_predictor_features() -> None:
    logits = np.array([[1.0, 3.0, 0.0, 2.0, -1.0]], np.float32)
    candidates, last = np.array([[1, 3, 0, 2]]), np.full((1, 4), 0.25, np.float32)
    features, local = predictor_features(logits, candidates, last)
    p = np.exp([3.0, 2.0, 1.0, 0.0]) / np.exp([3.0, 2.0, 1.0, 0.0]).sum()
    np.testing.assert_allclose(features[0], [3, 2, 1, 0, *p, *(p - 0.25)], rtol=1e-5)
    np.testing.assert_allclose(local[0], p, rtol=1e-5)


@pytest.mark.parametrize("name", PLANS)
def test_fitted_end_to_end_inside_the_risk(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Confident mode through the real loop, teacher-forced, loses no more than the union that was tested."""
    documents = write_documents(tmp_path / "documents.jsonl", count=90)
    plan = PLANS[name]
    summary = fit_exits(
        checkpoint, [1, 2, 3], documents, tmp_path / "s", risk=RISK, plan=plan, build_bundle=build_plain
    )
    assert summary["chosen"], "something is right often enough"
    opened = tiny.open_bundle(tmp_path / "b", tmp_path / "s", precision="fp32")
    assert [e.gates for e in opened.manifest.exits] == [list(plan.gates)] * 3
    assert {e.head for e in opened.manifest.exits} == {plan.head}
    [result] = opened.files.calibrations
    losses, early = [], 0
    tracer = Tracer(opened, exits=False)
    for document in load_documents(documents).stream(None, vocab=tiny.VOCAB, context=256, splits=("test",)):
        truth = tracer.trace(document.ids).final.token
        emitted = forced(opened, document.ids)
        losses.append(np.mean([token != truth[t + 1] for t, (token, _) in enumerate(emitted)]))
        early += sum(depth < 4 for _, depth in emitted)
    assert early
    assert np.mean(losses) <= chosen_point(result).risk + 0.005 <= RISK
    assert tiny.tokens(opened, [5, 6, 7], 12, mode="exact") == tiny.tokens(opened, [5, 6, 7], 12)


def test_one_router_chooses_for_all_exits(checkpoint: Path, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "documents.jsonl", count=90)
    fit_exits(checkpoint, [1, 2], documents, tmp_path / "s", risk=RISK, plan=PLANS["router"], build_bundle=build_plain)
    first, second = load_exits(tmp_path / "s").schema.exits
    assert first.router is not None
    assert first.router.choices == 3
    assert second.router is None


def test_every_tensor_of_an_exit_counts(checkpoint: Path, tmp_path: Path) -> None:
    """Spoil one tensor at a time: what the exits say of a document is never the same."""
    documents = write_documents(tmp_path / "documents.jsonl", count=90)
    plan = ExitPlan.of(["learned", "router", "predictor", "max_prob"], "low_rank", rank=8, tokens=40)
    student = tmp_path / "s"
    fit_exits(checkpoint, [1, 2], documents, student, risk=RISK, plan=plan, build_bundle=build_plain)
    schema, store = load_exits(student).schema, load_exits(student).store
    assert store is not None
    tensors = {name: store.read(name) for name in store.tensors}

    def said(changed: dict[str, Any]) -> Any:
        from eecompile.student.exits import save_exits

        save_exits(student, schema, {**tensors, **changed})
        trace = Tracer(tiny.open_bundle(tmp_path / "b", student)).trace(list(range(3, 40)))
        return np.stack([e.value(gate) for e in trace.exits for gate in plan.gates])

    expected = said({})
    unseen = [name for name, t in tensors.items() if np.array_equal(said({name: t + np.float32(0.3)}), expected)]
    assert unseen == []


def test_drafts_follow_an_adaptive_threshold(checkpoint: Path, tmp_path: Path) -> None:
    """Exact mode learns on its way, and the output stays full mode's."""
    documents = write_documents(tmp_path / "documents.jsonl", count=90)
    plan = ExitPlan.of(["max_prob"], schedule="adaptive")
    fit_exits(checkpoint, [1, 2, 3], documents, tmp_path / "s", risk=RISK, plan=plan, build_bundle=build_plain)
    opened = Bundle.open(tiny.bundle_at(tmp_path / "b", tmp_path / "s"), integrity="size")
    session = opened.session(mode="exact")
    run = session.generate([5, 6, 7], max_new_tokens=150)
    assert [t.id for t in run] == tiny.tokens(opened, [5, 6, 7], 150)
    assert session._current is not None
    learners = session._current.state.learners
    assert any(learner.updates for learner in learners.values())
    assert all(0.3 <= x.threshold <= 0.9 for x in learners.values() if x.threshold is not None)
