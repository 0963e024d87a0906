"""Classification in the C interface, against the Python runtime: texts, pairs, ids; labels, scores, depths, costs."""

import ctypes as ct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder as te
from c_calls import (
    CLASSIFY_COUNTS,
    CONTEXT_FULL,
    ON_ANSWER,
    UNCALIBRATED,
    USAGE,
    ClassifierOptions,
    ClassifyStats,
    Token,
    Tokens,
    array_of,
    load,
    open_again,
    said,
    sized,
)

from eecompile.runtime import Bundle
from eecompile.runtime.classify import Classification
from eecompile.runtime.texts import TextInput

KINDS = {"sequence": ("roberta", "sequence"), "tokens": ("bert", "tokens"), "regression": ("distilbert", "regression")}
WALKS = (("sequence", "none"), ("tokens", "none"), ("tokens", "propagate"), ("regression", "none"))
Found = tuple[int, int, int, int, int, str, list[float]]  # text, place, id, label, depth, name, scores


@pytest.fixture(scope="module")
def c(library: Path) -> Any:
    return load(library)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """Calibrated bundles with exits after three layers, in which much leaves early."""
    root, found = tmp_path_factory.mktemp("classifying"), {}
    for kind, kv in WALKS:
        family, task = KINDS[kind]
        source = te.add_tokenizer(te.checkpoint(root / f"{kind}-{kv}-source", te.config(family, task), gain=0.3))
        plain = te.open_bundle(root / f"{kind}-{kv}-plain", source, [1, 2, 3])
        share = 0.97 if (kind, kv) == ("tokens", "none") else 0.5
        found[kind, kv] = te.calibrated(plain, root / f"{kind}-{kv}", kv, te.passed_by(plain, share))
    return found


def given(seed: int, context: int) -> list[TextInput]:
    """Texts, pairs of them and token ids."""
    rng, found = np.random.default_rng(seed), list[TextInput]()
    for number in range(21):
        first, second = (" ".join(rng.choice([*te.TEXT.split(), "é", "Dogs"], rng.integers(0, 14))) for _ in range(2))
        ids = rng.integers(0, te.VOCAB, rng.integers(1, context)).tolist()
        found.append([first, (first, second), ids][number % 3])
    return found


def tokenized(c: Any, text: Any, one: TextInput, most: int = 0) -> Any:
    """The array of tokens that a text is to C; ids are tokens of nothing else."""
    if not isinstance(one, str) and not any(isinstance(part, str) for part in one):
        return (Token * len(one))(*((int(i), 0, 0, 0, 0, 0) for i in one))
    first, pair = (one, None) if isinstance(one, str) else map(str, one)
    second = None if pair is None else pair.encode()
    words = [first.encode(), len(first.encode()), second, len(second or b""), most]
    count = ct.c_size_t()
    assert c.eecompile_tokenize(text, *words, None, 0, ct.byref(count)) == 0, said(c)
    found = (Token * count.value)()
    assert c.eecompile_tokenize(text, *words, found, len(found), ct.byref(count)) == 0, said(c)
    return found


def classifier(c: Any, handle: Any, thresholds: Any = None, **options: Any) -> Any:
    made, how = ct.c_void_p(), sized(ClassifierOptions, **array_of(thresholds or {}), **options)
    assert c.eecompile_classifier_new(handle, ct.byref(how), ct.byref(made)) == 0, said(c)
    return made


def classified(c: Any, made: Any, texts: Sequence[Any], batch: int = 0) -> tuple[list[Found], Any]:
    """What every callback was told, in order, and the statistics."""
    found: list[Found] = []

    def take(context: Any, answer: Any) -> None:
        a = answer.contents
        found.append((a.text, a.place, a.id, a.label, a.exit_layer, a.name.decode(), a.scores[: a.score_count]))

    stats, array = sized(ClassifyStats), (Tokens * len(texts))(*((text, len(text)) for text in texts))
    done = c.eecompile_classify(made, array, len(texts), batch, ON_ANSWER(take), None, ct.byref(stats))
    assert done == 0, said(c)
    return found, stats


def told(opened: Bundle, texts: Sequence[TextInput], answers: Sequence[Classification]) -> list[Found]:
    """The same of the Python runtime's answers, whose tokens are those of the text that are not special."""
    found: list[Found] = []
    assert opened.text is not None
    encoder = opened.classifier().encoder
    for number, (text, one) in enumerate(zip(encoder.encode(texts), answers, strict=True)):
        places = [i for i, special in enumerate(text.special) if not special]
        for place, token in zip(places if one.tokens is not None else [], one.tokens or [], strict=True):
            label = int(np.argmax(token.scores))
            found.append((number, place, token.id, label, token.exit_layer, token.label, token.scores))
        label = int(np.argmax(one.scores)) if one.scores else -1
        found.append((number, -1, -1, label, one.exit_layer, one.label, one.scores))
    return found


def assert_same(found: Sequence[Found], expected: Sequence[Found]) -> None:
    assert [one[:-1] for one in found] == [one[:-1] for one in expected]
    for one, other in zip(found, expected, strict=True):  # two libraries' exponentials differ in a last bit
        assert one[-1] == pytest.approx(other[-1], rel=1e-13, abs=1e-300)


@pytest.mark.parametrize("walk", WALKS, ids="-".join)
def test_answers_are_the_python_runtimes(c: Any, walks: dict[Any, Bundle], walk: tuple[str, str]) -> None:
    """In both modes; and classifier and text outlive their bundle."""
    opened = walks[walk]
    handle, text = open_again(c, opened), ct.c_void_p()
    assert c.eecompile_text_new(handle, ct.byref(text)) == 0, said(c)
    labels = [c.eecompile_label(handle, i) for i in range(len(opened.manifest.labels) + 1)]
    assert labels == [*(label.encode() for label in opened.manifest.labels), None]
    made = {mode: classifier(c, handle, mode=mode.encode()) for mode in ("full", "confident")}
    c.eecompile_close(handle)
    texts = given(len(walk[0]), opened.manifest.model.context)
    tokens = [tokenized(c, text, one) for one in texts]
    for mode, one in made.items():
        own = opened.classifier(mode)
        for batch in (0, 5):
            found, stats = classified(c, one, tokens, batch)
            answers, cost = own.run(texts, batch or 32)
            assert_same(found, told(opened, texts, answers))
            expected = [getattr(cost, "passes" if name == "segment_passes" else name) for name in CLASSIFY_COUNTS]
            assert [getattr(stats, name) for name in CLASSIFY_COUNTS] == expected
            assert stats.mean_depth == cost.mean_depth
        assert mode == "full" or len(cost.exit_layers) > 2
        c.eecompile_classifier_free(one)
    c.eecompile_text_free(text)


def test_tokens_stand_where_python_sees_them(c: Any, walks: dict[Any, Bundle]) -> None:
    opened = walks["tokens", "none"]
    handle, text = open_again(c, opened), ct.c_void_p()
    assert c.eecompile_text_new(handle, ct.byref(text)) == 0, said(c)
    for one in ("the cät sat", ("the cät", "a dog, unheard"), ""):
        [expected] = opened.classifier().encoder.encode([one])
        assert expected.spans is not None
        assert expected.second is not None
        found = tokenized(c, text, one)
        assert [(t.id, t.type, t.begin, t.end) for t in found] == [
            (i, kind, *span) for i, kind, span in zip(expected.ids, expected.types, expected.spans, strict=True)
        ]
        assert [(t.special, t.second) for t in found] == list(zip(expected.special, expected.second, strict=True))
    cut = opened.classifier(truncate=True).encoder.encode(["the cat " * 50])[0]
    assert [t.id for t in tokenized(c, text, "the cat " * 50, opened.manifest.model.context)] == cut.ids
    c.eecompile_text_free(text)
    c.eecompile_close(handle)


def test_options_are_those_of_python(c: Any, walks: dict[Any, Bundle]) -> None:
    """A threshold above the calibrated one, a closed exit, a minimum depth, and a struct of an older version."""
    opened = walks["sequence", "none"]
    handle = open_again(c, opened)
    ids: list[TextInput] = [[5, 6, 7, 8], [9, 10], [3]]
    tokens = [tokenized(c, None, one) for one in ids]
    bound = opened.files.policy.exits[0].confident
    assert bound is not None
    higher: Any = {1: {"max_prob": min(1.0, bound["max_prob"] * 1.05)}, 2: None}
    for options, python in (({"thresholds": higher}, {"thresholds": higher}), ({"minimum_depth": 3},) * 2):
        made = classifier(c, handle, mode=b"confident", **options)
        own = opened.classifier("confident", **python)
        assert_same(classified(c, made, tokens)[0], told(opened, ids, own.classify(ids)))
        c.eecompile_classifier_free(made)
    old = ClassifierOptions(size=ClassifierOptions.minimum_depth.offset, mode=b"full", minimum_depth=-1, budget=-1)
    made = ct.c_void_p()
    assert c.eecompile_classifier_new(handle, ct.byref(old), ct.byref(made)) == 0, said(c)
    c.eecompile_classifier_free(made)
    c.eecompile_close(handle)


def test_faults_are_codes_and_texts(c: Any, walks: dict[Any, Bundle], shelf: Any) -> None:
    opened = walks["sequence", "none"]
    handle, made = open_again(c, opened), ct.c_void_p()
    bold: Any = {1: {"max_prob": 0.0}}
    for options, code, text in (
        (sized(ClassifierOptions, mode=b"exact"), USAGE, "no mode exact"),
        (sized(ClassifierOptions, mode=b"confident", **array_of(bold)), UNCALIBRATED, "bolder"),
        (sized(ClassifierOptions, granularity=b"token"), USAGE, "granularities"),
    ):
        assert c.eecompile_classifier_new(handle, ct.byref(options), ct.byref(made)) == code
        assert (made.value, text in said(c)) == (None, True), said(c)
    one, answers = classifier(c, handle, budget=100), list[Any]()
    keep = ON_ANSWER(lambda context, answer: answers.append(answer))
    for ids, code, text in (
        ([], USAGE, "text 2 of 2: the text has no tokens"),
        ([te.VOCAB], USAGE, f"outside 0..{te.VOCAB - 1}"),
        ([5] * 79, CONTEXT_FULL, "does not fit the context"),
        ([5] * 26, USAGE, "104 layer-rows"),
    ):
        texts = [tokenized(c, None, [4]), tokenized(c, None, ids)]
        array = (Tokens * 2)(*((t, len(t)) for t in texts))
        assert c.eecompile_classify(one, array, 2, 0, keep, None, None) == code
        assert (answers, text in said(c)) == ([], True), said(c)
    assert c.eecompile_classify(one, (Tokens * 1)((None, 3)), 1, 0, keep, None, None) == USAGE
    assert c.eecompile_classify(one, None, 1, 0, keep, None, None) == USAGE
    assert c.eecompile_classify(one, None, 0, 0, keep, None, None) == 0, said(c)
    c.eecompile_classifier_free(one)
    c.eecompile_close(handle)
    plain = open_again(c, shelf.bundle())
    assert c.eecompile_classifier_new(plain, None, ct.byref(made)) == USAGE
    assert (c.eecompile_label(plain, 0), "generates text" in said(c)) == (None, True)
    c.eecompile_close(plain)
