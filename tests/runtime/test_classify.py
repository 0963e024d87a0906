"""Classifiers: a batch is its rows run alone, what left stays gone and what said continue goes on, refusals."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder as te
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.errors import ContextFull, NumericError, Uncalibrated, UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.classify import BatchAnswers, Classifier, ClassifyStats
from eecompile.runtime.labels import ClassRule, delta_fires
from eecompile.runtime.texts import EncodedText, TextEncoder
from eecompile.runtime.trace_texts import TextTracer

AT = [1, 2, 3]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each task, with raw exits after each layer; the layers change little, so that exits often fire."""
    root, found = tmp_path_factory.mktemp("classify"), {}
    for task, family in (("sequence", "roberta"), ("tokens", "bert"), ("regression", "distilbert")):
        source = te.add_tokenizer(te.checkpoint(root / task, te.config(family, task), gain=0.3))
        found[task] = te.open_bundle(root / f"{task}-bundle", source, AT)
    found["int4"] = te.open_bundle(root / "int4", root / "tokens", AT, precision="int4")
    return found


def classifier(opened: Bundle, chosen: list[float | None], **options: Any) -> Classifier:
    """At one threshold for each exit; None closes it."""
    gate: Any = "delta" if opened.manifest.task == "regression" else "max_prob"
    rules = [None if t is None else ClassRule.of({gate: t}) for t in chosen]
    return Classifier(opened.manifest, opened.graphs, TextEncoder(opened.manifest, opened.text), rules, **options)


def quantiles(opened: Bundle, share: float) -> list[float | None]:
    """A threshold for each exit that about `share` of the answers pass there."""
    said = TextTracer(opened).trace(te.random_texts(20, seed=9, types=kinds(opened))).exits
    if opened.manifest.task == "regression":
        deltas = [np.abs(b.logits - a.logits) for a, b in itertools.pairwise(said)]
        return [1.0, *(float(np.quantile(d, share)) for d in deltas)]
    return [float(np.quantile(e.max_prob, 1 - share)) for e in said if e.max_prob is not None]


def kinds(opened: Bundle) -> int:
    """Kinds of tokens that the model tells apart."""
    assert opened.manifest.encoder is not None
    return opened.manifest.encoder.types


def rows_of(answers: BatchAnswers, texts: list[EncodedText], per_row: bool) -> list[tuple[Any, Any]]:
    """Each text's logits and depths; of tokens that are no special ones where each has a label."""
    if not per_row:
        return [(answers.logits[i], answers.depth[i]) for i in range(len(texts))]
    starts, found = np.cumsum([0, *(len(t.ids) for t in texts)]), []
    for text, (a, b) in zip(texts, itertools.pairwise(starts), strict=True):
        real = ~np.array(text.special)
        found.append((answers.logits[a:b][real], answers.depth[a:b][real]))
    return found


def same(left: list[tuple[Any, Any]], right: list[tuple[Any, Any]]) -> bool:
    """To the last bit."""
    return all(np.array_equal(a, x) and np.array_equal(b, y) for (a, b), (x, y) in zip(left, right, strict=True))


@settings(max_examples=25)
@given(
    task=st.sampled_from(["sequence", "tokens", "regression", "int4"]),
    count=st.integers(1, 9),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    per_token=st.booleans(),
    compaction=st.booleans(),
)
def test_a_batch_is_its_rows_run_alone(
    bundles: dict[str, Bundle], task: str, count: int, seed: int, share: float, per_token: bool, compaction: bool
) -> None:
    opened = bundles[task]
    per_row = opened.manifest.task == c.TOKENS
    texts = te.random_texts(count, seed, types=kinds(opened))
    one = classifier(opened, quantiles(opened, share), per_token=per_token and per_row, compaction=compaction)
    together = rows_of(one.answer(texts), texts, per_row)
    other = classifier(opened, quantiles(opened, share), per_token=per_token and per_row)
    assert same(together, [rows_of(other.answer([text]), [text], per_row)[0] for text in texts])


def by_hand(opened: Bundle, texts: list[EncodedText], bounds: list[float | None]) -> list[tuple[Any, Any]]:
    """What exits per text answer, from the table of what every exit says at full depth."""
    trace = TextTracer(opened).trace(texts)
    found = []
    for number in range(len(texts)):
        mine = trace.text == number
        logits, depth = trace.logits[mine], opened.manifest.model.layers
        for g in reversed(range(len(AT))):
            before = trace.exits[g - 1].logits[:, 0] if g else np.full(len(mine), np.nan, np.float32)
            if opened.manifest.task == "regression":
                fires = delta_fires(trace.exits[g].logits[:, 0], before, ClassRule.of({"delta": bounds[g] or 0.0}))
            else:
                fires = trace.exits[g].max_prob > np.float32(bounds[g] or 0.0)  # type: ignore[operator]
            if fires[mine & ~trace.special].all():
                logits, depth = trace.exits[g].logits[mine], AT[g]
        real = ~trace.special[mine]
        per_row = opened.manifest.task == c.TOKENS
        found.append((logits[real], np.full(real.sum(), depth)) if per_row else (logits[0], depth))
    return found


@pytest.mark.parametrize("task", ["sequence", "tokens", "regression"])
def test_a_text_leaves_at_the_first_exit_that_fires_and_never_before(bundles: dict[str, Bundle], task: str) -> None:
    opened, depths = bundles[task], set()
    texts = te.random_texts(30, seed=3, types=kinds(opened))
    for share in (0.3, 0.6, 0.95):
        bounds = quantiles(opened, share)
        found = rows_of(classifier(opened, bounds).answer(texts), texts, task == "tokens")
        assert same(found, by_hand(opened, texts, bounds))
        depths |= {int(d) for _, depth in found for d in np.atleast_1d(depth)}
    assert len(depths) > 2


def test_per_token_no_row_leaves_whose_gate_said_continue(bundles: dict[str, Bundle]) -> None:
    """Recomputed step by step: each token's answer comes from the first exit that its own row, among the frozen states
    of those that left before it, is sure at."""
    opened = bundles["tokens"]
    bounds, texts = quantiles(opened, 0.5), te.random_texts(12, seed=5)
    answers = classifier(opened, bounds, per_token=True).answer(texts)
    row, left = 0, set()
    for text in texts:
        depth = answers.depth[row : row + len(text.ids)]
        real = ~np.array(text.special)
        logits = answers.logits[row : row + len(text.ids)][real]
        top = np.exp(logits - logits.max(axis=1, keepdims=True))
        sure = top.max(axis=1) / top.sum(axis=1) > np.array([0, *bounds, 0])[depth[real]]
        assert sure.all()
        left |= set(depth[real].tolist())
        row += len(text.ids)
    assert left == {1, 2, 3, 4}


def test_propagate_keeps_the_state_a_token_left_with(bundles: dict[str, Bundle]) -> None:
    """The frozen rows' keys come from their own exit: by the numpy model, layer by layer."""
    from eecompile.student.encoder_reference import EncoderReference
    from eecompile.student.encoder_student import open_encoder

    opened = bundles["tokens"]
    student = open_encoder(opened.files.path.parent / "tokens")
    reference, bounds = EncoderReference(student.spec, student.store), quantiles(opened, 0.5)
    for text in te.random_texts(6, seed=11):
        answers = classifier(opened, bounds, per_token=True).answer([text])
        x = reference.run(text.ids, text.types).boundaries[0]
        frozen = np.zeros(len(x), np.bool_)
        for layer in range(4):
            x = np.where(frozen[:, None], x, reference._layer(x, layer))
            logits = reference._linear(x, "classifier")
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            sure = weights.max(axis=1) / weights.sum(axis=1) > ([*bounds, -1.0][layer] or 0.0)
            leaving = ~frozen & sure
            real = leaving & ~np.array(text.special)
            assert (answers.depth[real] == layer + 1).all()
            np.testing.assert_allclose(answers.logits[real], logits[real], atol=1e-4)
            frozen |= leaving


def test_compaction_computes_less_and_answers_the_same(bundles: dict[str, Bundle]) -> None:
    texts = te.random_texts(16, seed=2)
    for per_token in (False, True):
        bounds, rows, answers = quantiles(bundles["tokens"], 0.95), [], []
        for compaction in (True, False):
            stats = ClassifyStats()
            one = classifier(bundles["tokens"], bounds, per_token=per_token, compaction=compaction)
            answers.append(rows_of(one.answer(texts, stats), texts, True))
            rows.append(stats.layer_rows)
        assert same(*answers)
        assert rows[0] < rows[1]


def test_results_come_in_order_with_labels_and_spans(bundles: dict[str, Bundle]) -> None:
    texts = [
        "the cat sat on the mat .",
        "a dog",
        "it was the town , and then the dogs ran on",
        ("the cat", "a dog ran"),
    ]
    found = bundles["tokens"].classifier().classify(texts, batch=2)
    assert [t.text for t in found[1].tokens or []] == ["a", "dog"]
    assert [(t.text, t.start, t.end) for t in found[2].tokens or []][8:10] == [("dog", 31, 34), ("s", 34, 35)]
    assert [(t.text, t.pair) for t in found[3].tokens or []][1:3] == [("cat", 0), ("a", 1)]
    for t in found[0].tokens or []:
        assert t.label == bundles["tokens"].manifest.labels[int(np.argmax(t.scores))]
        assert sum(t.scores) == pytest.approx(1)
    alone = [bundles["sequence"].classifier().classify([text])[0] for text in texts]
    assert bundles["sequence"].classifier().classify(texts) == alone
    assert bundles["regression"].classifier().classify(["the cat"])[0].label == "score"


def test_ids_are_the_text(bundles: dict[str, Bundle]) -> None:
    one = bundles["sequence"].classifier()
    ids = one.encoder.encode(["the cat sat"])[0].ids
    assert one.classify([ids])[0] == one.classify(["the cat sat"])[0]


def test_confident_mode_needs_a_calibration_of_its_granularity(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    safe, bold = [{"max_prob": 0.9}, None, {"max_prob": 0.8}], [{"max_prob": 0.7}, None, {"max_prob": 0.6}]
    plain = bundles["tokens"]
    with pytest.raises(Uncalibrated, match="calibrate"):
        plain.classifier("confident")
    whole = te.calibrated(plain, tmp_path / "whole", "none", bold)
    assert not whole.classifier("confident").per_token
    whole.classifier("confident", thresholds={1: {"max_prob": 0.75}, 3: None})
    with pytest.raises(Uncalibrated, match="outside"):
        whole.classifier("confident", thresholds={1: {"max_prob": 0.5}})
    with pytest.raises(Uncalibrated, match="exits per token"):
        whole.classifier("confident", granularity="token")
    single = te.calibrated(plain, tmp_path / "single", "propagate", safe, bold)
    assert single.classifier("confident").per_token
    single.classifier("confident", thresholds={1: safe[0], 3: safe[2]})
    single.classifier("confident", thresholds={1: None, 3: None})
    for untested in ({1: {"max_prob": 0.75}}, {1: None}):
        with pytest.raises(Uncalibrated, match="not tested together"):
            single.classifier("confident", thresholds=untested)
    with pytest.raises(Uncalibrated, match="not tested together"):
        single.classifier("confident", minimum_depth=2)
    with pytest.raises(Uncalibrated, match="exits per sentence"):
        single.classifier("confident", granularity="sentence")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "exact"}, "no mode exact"),
        ({"mode": "sleepy"}, "modes: full, confident"),
        ({"granularity": "token"}, "granularities of a sequence-classification: sentence"),
        ({"minimum_depth": 9}, "minimum depth"),
        ({"budget": 0}, "budget"),
    ],
)
def test_what_a_classifier_refuses(bundles: dict[str, Bundle], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as fault:
        bundles["sequence"].classifier(**options)
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[]], "no tokens"),
        ([[1, 96]], "outside 0..95"),
        ([[5] * 79], "79 tokens does not fit the context of 78"),
        (["the " * 90], "does not fit"),
        (["a", [5] * 90], "text 2 of 2"),
    ],
)
def test_inputs_that_are_refused(bundles: dict[str, Bundle], given: list[Any], words: str) -> None:
    with pytest.raises(UsageError) as fault:
        bundles["sequence"].classifier().classify(given)
    assert words in str(fault.value)


def test_a_long_text_may_be_cut_off(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(ContextFull, match="truncate"):
        bundles["sequence"].classifier().classify(["the " * 90])
    cut = bundles["sequence"].classifier(truncate=True)
    assert len(cut.encoder.encode(["the " * 90])[0].ids) == 78
    assert cut.encoder.encode(["the " * 90])[0].ids[-1] == 3, "[SEP] is kept"
    assert cut.classify(["the " * 90, [5] * 90])


def test_a_budget_prices_a_text_at_full_depth(bundles: dict[str, Bundle]) -> None:
    one = bundles["sequence"].classifier(budget=40)
    one.classify([[5] * 10, [5] * 10])
    with pytest.raises(UsageError, match="44 layer-rows"):
        one.classify([[5] * 10, [5] * 11])


def test_a_bundle_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    opened = te.open_bundle(tmp_path / "bundle", te.checkpoint(tmp_path / "checkpoint"))
    assert opened.classifier().classify([[5, 6]])[0].exit_layer == 4
    with pytest.raises(UsageError, match="prompt-ids"):
        opened.classifier().classify(["the cat"])
    with pytest.raises(UsageError, match="classifier"):
        opened.session()


def test_logits_that_are_not_finite_are_a_fault_and_never_exit(tmp_path: Path) -> None:
    spoilt = te.checkpoint(tmp_path / "c", te.config(), **{"classifier.bias": np.array([np.nan, 0, 0], np.float32)})
    opened = te.open_bundle(tmp_path / "bundle", spoilt, AT)
    with pytest.raises(NumericError):
        classifier(opened, [0.0] * 3).answer(te.random_texts(3))


def test_own_classifiers_and_affine_adapters(tmp_path: Path) -> None:
    """Each exit's logits by numpy, from its own tensors."""
    for task, adapter in itertools.product(("sequence", "tokens", "regression"), ("classifier", "affine")):
        source = te.checkpoint(tmp_path / f"{task}-{adapter}", te.config("bert", task))
        te.add_own_classifiers(source, [1, 3], adapter)
        opened = te.open_bundle(tmp_path / f"{task}-{adapter}-bundle", source)
        trace = TextTracer(opened, boundaries=True).trace([te.encoded([2, 5, 6, 3])])
        from safetensors.numpy import load_file

        own, model = load_file(source / "early_exit.safetensors"), load_file(source / "model.safetensors")
        for g, layer in enumerate((1, 3)):
            x = trace.boundaries[g + 1][: 4 if task == "tokens" else 1]
            parts = {p: (own.get(f"exit.{layer}.{p}.weight"), own.get(f"exit.{layer}.{p}.bias")) for p in
                     ("adapter", "pooler", "classifier")}  # fmt: skip
            if adapter == "affine":
                x = x @ parts["adapter"][0] + parts["adapter"][1]
                parts["pooler"] = (
                    model.get("bert.pooler.dense.weight", np.zeros((1, 1))).T,
                    model.get("bert.pooler.dense.bias"),
                )
                parts["classifier"] = (model["classifier.weight"].T, model["classifier.bias"])
            if task != "tokens":
                x = np.tanh(x @ parts["pooler"][0] + parts["pooler"][1])
            np.testing.assert_allclose(
                trace.exits[g].logits, x @ parts["classifier"][0] + parts["classifier"][1], atol=1e-4
            )


def test_the_manifest_has_labels(bundles: dict[str, Bundle]) -> None:
    manifest = bundles["sequence"].manifest
    assert (manifest.task, manifest.labels) == ("sequence-classification", ["bad", "fair", "good"])
    document = json.loads((bundles["sequence"].files.path / "manifest.json").read_text())
    for change in ({"labels": []}, {"encoder": None}, {"task": "regression"}, {"task": "causal-lm"}):
        with pytest.raises(ValueError, match=r"label|encoder"):
            type(manifest).model_validate({**document, **change})
