"""From a tiny checkpoint to a calibrated student, a bundle of it, and confident mode inside its guarantee."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.bundle.policy import change_policy
from eecompile.bundle.sign import new_key, sign_bundle
from eecompile.calibrate.calibrate import apply_calibration, calibrate, calibrate_file, letters
from eecompile.calibrate.documents import load_documents
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.tables import trace_tables
from eecompile.errors import NumericError, Uncalibrated, UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.gates import ExitGates, GateState
from eecompile.runtime.rules import ExitRule, with_listeners
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.trace import Tracer
from eecompile.schema import CalibrationResult
from eecompile.student.exits import ExitSpec, load_exits
from eecompile.student.student import open_student

RISK, AT = 0.2, [1, 3]


def write_documents(path: Path, count: int = 120, length: int = 24) -> Path:
    """Random walks over the vocabulary."""
    rng = np.random.default_rng(0)
    ids = (rng.integers(0, 9, (count, length)).cumsum(axis=1) + rng.integers(0, 128, (count, 1))) % tiny.VOCAB
    path.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in ids))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers add little, so that early layers know much."""
    return tiny.checkpoint(tmp_path_factory.mktemp("fit") / "checkpoint", gain=0.25)


@pytest.fixture(scope="module")
def documents(checkpoint: Path) -> Path:
    return write_documents(checkpoint.parent / "documents.jsonl")


@pytest.fixture(scope="module")
def fitted(checkpoint: Path, documents: Path) -> tuple[Path, dict[str, Any]]:
    """The student that no test may change, and the summary."""
    out = checkpoint.parent / "student"
    return out, fit_exits(checkpoint, AT, documents, out, risk=RISK, build_bundle=build_plain)


@pytest.fixture
def bundle(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A float32 bundle of the student."""
    return tiny.bundle_at(tmp_path / "bundle", fitted[0], precision="fp32")


def chosen_point(result: CalibrationResult) -> Any:
    assert result.chosen is not None
    return result.path[result.chosen]


def test_the_student_holds_fitted_exits_and_their_calibration(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, summary = fitted
    schema = load_exits(out).schema
    assert [e.layer for e in schema.exits] == AT
    assert all(e.adapter == "affine" and e.gates == ["learned", "max_prob"] and e.gate_units for e in schema.exits)
    assert all(e.draft for e in schema.exits)
    [result] = schema.calibrations
    assert (result.precision, result.kv, result.risk, result.error) == ("fp32", "catch_up", RISK, 0.05)
    point = chosen_point(result)
    assert point.p_value <= 0.05
    assert point.exit_rate > 0.05
    assert summary["chosen"]["risk"] == point.risk
    assert [e["confident"] for e in summary["exits"]] == point.thresholds
    for exit_ in summary["exits"]:
        assert exit_["agreement"] > exit_["plain_agreement"], "the translator helps"
        assert 0.5 < exit_["gate_auc"] <= 1
    json.dumps(summary)


def test_the_checkpoint_is_linked_unchanged_and_nothing_else_is_left(
    checkpoint: Path, fitted: tuple[Path, dict[str, Any]]
) -> None:
    out = fitted[0]
    assert sorted(p.name for p in checkpoint.iterdir()) == ["config.json", "model.safetensors"]
    assert (out / "model.safetensors").samefile(checkpoint / "model.safetensors")
    assert not (out / "config.json").samefile(checkpoint / "config.json")
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["checkpoint", "documents.jsonl", "student"]
    assert str(checkpoint.parent) not in (out / "early_exit.json").read_text()


def test_fitting_again_gives_the_same_exits(
    checkpoint: Path, documents: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    again = fit_exits(checkpoint, AT, documents, tmp_path / "again", risk=RISK, build_bundle=build_plain)
    assert again == fitted[1]
    assert load_exits(tmp_path / "again").schema.weights == load_exits(fitted[0]).schema.weights


def test_a_bundle_of_it_runs_in_confident_mode_inside_the_risk(bundle: Path, documents: Path) -> None:
    """Teacher-forced through the real loop: what is emitted differs no more often than the union that was tested."""
    opened = Bundle.open(bundle)
    [result] = opened.files.calibrations
    assert [e.confident for e in opened.files.policy.exits] == chosen_point(result).thresholds
    losses, early = [], 0
    tracer = Tracer(opened, exits=False)
    for document in load_documents(documents).stream(None, vocab=tiny.VOCAB, context=256, splits=("test",)):
        truth = tracer.trace(document.ids).final.token
        emitted = forced(opened, document.ids)
        losses.append(np.mean([token != truth[t + 1] for t, (token, _) in enumerate(emitted)]))
        early += sum(depth < 4 for _, depth in emitted)
    assert len(losses) == result.documents
    assert early
    assert np.mean(losses) <= chosen_point(result).risk + 0.005 <= RISK


def forced(opened: Bundle, ids: list[int]) -> list[tuple[int, int]]:
    """(token, layers) that confident mode emits after each token but the first, which is the prompt."""
    manifest = opened.manifest
    exits = enumerate(opened.files.policy.exits)
    rules = [None if e.confident is None else ExitRule.of(g, e.layer, e.confident) for g, e in exits]
    stairs = Staircase(manifest, opened.graphs)
    heads = opened.heads(manifest.pending_cap + 1)
    gates = ExitGates(manifest.exits, opened.askers(), heads)
    state = GateState(with_listeners(rules, manifest.exits))
    one = Continuation(stairs, state, exact=False, cap=manifest.pending_cap)
    decoder = Decoder(heads["full"], gates, layers=4)
    stairs.prefill(ids[:1])
    decoder.start([one])
    emitted = []
    for token in ids[1:]:
        one.last = token
        decoder.step([one])
        [said] = one.certain
        emitted.append((said.id, said.depth))
    return emitted


def test_traces_retell_the_stored_point(bundle: Path, documents: Path) -> None:
    opened = Bundle.open(bundle)
    [result] = opened.files.calibrations
    table = trace_tables(opened, load_documents(documents), ("test",), lambda stage: None)["test"]
    assert result.traces == letters(table, chosen_point(result).thresholds)
    assert result.draft_traces == letters(table, [e.draft for e in opened.files.policy.exits])
    tokens = [text[i : i + 2] for text in result.traces for i in range(0, len(text), 2)]
    assert len(tokens) == result.tokens
    assert np.mean(["a" in t or "x" in t for t in tokens]) == pytest.approx(chosen_point(result).exit_rate)
    losses = [np.mean(["x" in text[i : i + 2] for i in range(0, len(text), 2)]) for text in result.traces]
    assert np.mean(losses) == pytest.approx(chosen_point(result).risk)
    drafted = "".join(result.draft_traces)
    assert drafted.count("a") / max(1, drafted.count("a") + drafted.count("x")) == pytest.approx(0.8, abs=0.1)


def test_thresholds_move_only_towards_safety(bundle: Path) -> None:
    [result] = Bundle.open(bundle).files.calibrations
    layer, safe = next((AT[g], t) for g, t in enumerate(chosen_point(result).thresholds) if t)
    change_policy(bundle, thresholds={layer: {"max_prob": min(1.0, safe["max_prob"] + 0.01)}})
    with pytest.raises(UsageError, match="bolder than calibrated"):
        change_policy(bundle, thresholds={layer: {"learned": max(0.0, safe["learned"] - 0.01)}})


@pytest.mark.parametrize("signed", [False, True])
def test_a_quantised_bundle_is_calibrated_on_its_own(
    fitted: tuple[Path, dict[str, Any]], documents: Path, tmp_path: Path, signed: bool
) -> None:
    path, key = tiny.bundle_at(tmp_path / "int8", fitted[0], precision="int8"), None
    if signed:
        key = tmp_path / "key.pem"
        new_key(key)
        sign_bundle(path, key)
    opened = Bundle.open(path)
    assert not opened.files.calibrations
    with pytest.raises(Uncalibrated):
        opened.session(mode="confident")
    stages: list[str] = []
    result = calibrate_file(opened, documents, risk=RISK, progress=stages.append)
    assert result.precision == "int8"
    assert len(stages) > 1
    if signed:
        with pytest.raises(UsageError, match="signed"):
            apply_calibration(path, result)
    apply_calibration(path, result, key=key)
    opened = Bundle.open(path, key=key and tmp_path / "key.pem.pub")
    assert (path / "overlays" / "calibration-int8-catch_up-8.json").exists()
    assert [e.confident for e in opened.files.policy.exits] == chosen_point(result).thresholds
    assert tiny.tokens(opened, [5, 6, 7], 8, mode="confident")


def test_where_nothing_passes_the_exits_are_closed(documents: Path, tmp_path: Path, bundle: Path) -> None:
    """An exit that always fires, of a model whose layers change everything."""
    source = tiny.checkpoint(tmp_path / "c", gain=3.0)
    tiny.add_exits(source, [ExitSpec(layer=1, gates=["fixed"])])
    path = tiny.bundle_at(tmp_path / "b", source, precision="fp32")
    result = calibrate_file(Bundle.open(path), documents, risk=0.1)
    assert result.chosen is None
    assert result.traces == []
    apply_calibration(path, result)
    opened = Bundle.open(path)
    assert all(e.confident is None and "risk of 0.1" in e.reason for e in opened.files.policy.exits)
    with pytest.raises(Uncalibrated):
        opened.session(mode="confident")
    with pytest.raises(UsageError, match="another build"):
        apply_calibration(bundle, result)


def test_a_failed_calibration_withdraws_an_earlier_one(bundle: Path, documents: Path) -> None:
    opened = Bundle.open(bundle)
    found = calibrate(opened, load_documents(documents), risk=RISK)
    apply_calibration(bundle, found.model_copy(update={"chosen": None, "traces": []}))
    assert all(e.confident is None for e in Bundle.open(bundle).files.policy.exits)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"gates": ("luck",)}, "no gate 'luck'"),
        ({"gates": ()}, "one to four"),
        ({"gates": ("learned", "learned")}, "one to four"),
        ({"head": "tiny"}, "no head 'tiny'"),
        ({"schedule": "daily"}, "no schedule 'daily'"),
        ({"gates": ("saturation",), "schedule": "decay"}, "neither"),
        ({"rank": 0}, "out of range"),
        ({"tokens": 3}, "out of range"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ExitPlan.of(**options)


@pytest.mark.parametrize("gates", [("max_prob",), ("learned", "margin", "entropy"), ("fixed",)], ids="+".join)
def test_other_gates(checkpoint: Path, documents: Path, tmp_path: Path, gates: Any) -> None:
    summary = fit_exits(
        checkpoint, [3], documents, tmp_path / "s", risk=0.3, plan=ExitPlan.of(gates), build_bundle=build_plain, seed=1
    )
    [spec] = load_exits(tmp_path / "s").schema.exits
    assert tuple(spec.gates) == gates
    assert (spec.gate_units > 0) == ("learned" in gates)
    assert (summary["exits"][0]["gate_auc"] is None) == ("learned" not in gates)
    opened = tiny.open_bundle(tmp_path / "b", tmp_path / "s", precision="fp32")
    if summary["chosen"]:
        assert tiny.tokens(opened, [5, 6, 7], 4, mode="confident")
    assert tiny.tokens(opened, [5, 6, 7], 6, mode="exact") == tiny.tokens(opened, [5, 6, 7], 6)


def test_text_is_fitted_on_with_the_tokenizer(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "c", tiny.config(vocab_size=288), gain=0.25)
    tiny.add_tokenizer(source)
    texts = [f"the document of number {i} and then {i * 7919 % 1000}" for i in range(120)]
    (tmp_path / "d.txt").write_text("\n---\n".join(texts))
    fit_exits(source, [2], tmp_path / "d.txt", tmp_path / "s", risk=RISK, build_bundle=build_plain, max_tokens=24)
    assert (tmp_path / "s" / "tokenizer.json").exists()
    assert open_student(tmp_path / "s").exits.schema.provenance["max_tokens"] == 24


def test_an_older_student_is_replaced_and_its_leftovers_go(checkpoint: Path, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    fit_exits(checkpoint, [1], documents, out, risk=RISK, build_bundle=build_plain)
    abandoned = tmp_path / ".s.tmp-4194999-01234567"
    abandoned.mkdir()
    fit_exits(checkpoint, [2], documents, out, risk=RISK, build_bundle=build_plain)
    assert [e.layer for e in load_exits(out).schema.exits] == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_failure_on_the_way_leaves_what_was_there(
    checkpoint: Path, documents: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    before = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    built: list[Path] = []

    def fail_at_second(student: Any, out: Path) -> None:
        if built:
            raise KeyboardInterrupt
        built.append(out)
        build_plain(student, out)

    with pytest.raises(KeyboardInterrupt):
        fit_exits(checkpoint, AT, documents, tmp_path / "s", risk=RISK, build_bundle=fail_at_second)
    assert list(tmp_path.iterdir()) == []
    assert hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest() == before


def test_weights_are_copied_where_they_cannot_be_linked(
    checkpoint: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    fit_exits(checkpoint, [1], documents, tmp_path / "s", risk=RISK, build_bundle=build_plain)
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def never_built(student: Any, out: Path) -> None:
    raise AssertionError("refuse before building anything")


def test_too_few_documents_are_refused_with_the_number_needed(checkpoint: Path, tmp_path: Path) -> None:
    few = write_documents(tmp_path / "few.jsonl", count=40)
    with pytest.raises(UsageError, match=r"of 40 documents are for testing.* needs at least 150") as caught:
        fit_exits(checkpoint, AT, few, tmp_path / "s", risk=0.02, build_bundle=never_built)
    assert "about 390 documents" in str(caught.value)
    with pytest.raises(UsageError, match="are needed"):
        fit_exits(checkpoint, AT, write_documents(tmp_path / "15.jsonl", 15), tmp_path / "s", risk=0.6,
                  build_bundle=never_built)  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_calibrating_is_refused_without_documents_or_exits(
    fitted: tuple[Path, dict[str, Any]], documents: Path, shelf: Any, tmp_path: Path
) -> None:
    opened = shelf.bundle(at=AT)
    with pytest.raises(UsageError, match="needs at least 59"):
        calibrate_file(opened, write_documents(tmp_path / "few.jsonl", count=30), risk=0.05)
    with pytest.raises(UsageError, match="no documents"):
        calibrate_file(opened, tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match="no exits"):
        calibrate_file(shelf.bundle(), documents)
    for bad in ({"risk": 0.0}, {"risk": 1.0}, {"error": 0.0}):
        with pytest.raises(UsageError, match="not between 0 and 1"):
            calibrate_file(opened, documents, **bad)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"at": []}, "no exits are asked for"),
        ({"at": [4]}, "not before the last of 4 layers"),
        ({"out": "checkpoint"}, "checkpoint itself"),
        ({"out": "other"}, "something other"),
    ],
)
def test_requests_that_cannot_be_served(
    checkpoint: Path, documents: Path, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    out = {"checkpoint": checkpoint, "other": tmp_path / "other"}.get(options.pop("out", ""), tmp_path / "s")
    request = {"at": AT, "risk": RISK, **options}
    with pytest.raises(UsageError, match=what):
        fit_exits(checkpoint, request.pop("at"), documents, out, build_bundle=never_built, **request)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_a_model_without_finite_logits_is_refused(documents: Path, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.config())
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 1e38)
    source = tiny.checkpoint(tmp_path / "c", tensors=tensors)
    with np.errstate(all="ignore"):
        with pytest.raises(NumericError, match="not finite"):
            fit_exits(source, AT, documents, tmp_path / "s", risk=RISK, build_bundle=build_plain)
        opened = tiny.open_bundle(tmp_path / "b", source, AT)
        with pytest.raises(NumericError, match="not finite"):
            calibrate_file(opened, documents, risk=RISK)


def test_text_without_a_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a text that is long enough"}\n' * 2)
    with pytest.raises(UsageError, match="has no tokenizer"):
        fit_exits(checkpoint, AT, tmp_path / "d.jsonl", tmp_path / "s", build_bundle=never_built)
