"""Classifiers of the C++ runtime against the Python ones: labels, scores, exits, costs; and what both refuse."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder as te
from compiled import SOURCES
from real_inputs import INPUTS

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.cli.classify import as_object
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle
from eecompile.runtime.classify import Classifier, ClassifyStats
from eecompile.runtime.prompts import read_texts

AT = [1, 2, 3]
WITH_TEXT = (SOURCES / "tokenizer").is_dir()
KINDS = {  # family, task, how they are built
    "sequence": ("roberta", "sequence", {}),
    "tokens": ("bert", "tokens", {}),
    "regression": ("distilbert", "regression", {}),
    "int4": ("bert", "tokens", {"precision": "int4"}),
    "own": ("xlm-roberta", "sequence", {"precision": "int8"}),
}
WALKS = [(kind, "none") for kind in KINDS] + [("tokens", "propagate"), ("int4", "propagate")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each kind, with exits after each layer; the layers change little, so that exits often fire."""
    root, found = tmp_path_factory.mktemp("classifiers"), {}
    for kind, (family, task, options) in KINDS.items():
        source = te.add_tokenizer(te.checkpoint(root / kind, te.config(family, task), gain=0.3))
        if kind == "own":
            te.add_own_classifiers(source, AT)
        found[kind] = te.open_bundle(root / f"{kind}-bundle", source, [] if kind == "own" else AT, **options)
    return found


@pytest.fixture(scope="module")
def walks(plain: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """Calibrated copies, with thresholds that half of the answers pass, or nearly all where a text waits for them."""
    root, found = tmp_path_factory.mktemp("calibrated"), {}
    for kind, kv in WALKS:
        opened = plain[kind]
        share = 0.97 if opened.manifest.task == c.TOKENS and kv == "none" else 0.5
        found[kind, kv] = te.calibrated(opened, root / f"{kind}-{kv}", kv, te.passed_by(opened, share))
    return found


def records(opened: Bundle, seed: int) -> list[dict[str, Any]]:
    """Token ids of every kind, padding among them; texts and pairs where the command reads text."""
    rng, words, found = np.random.default_rng(seed), [*te.TEXT.upper().split(), "dogs", "unheard", "é", "Ünï"], []
    for number in range(30):
        if not WITH_TEXT or number % 3 == 0:
            size = int(rng.integers(1, opened.manifest.model.context + 1))
            found.append({"prompt_ids": rng.integers(0, te.VOCAB, size).tolist()})
            continue
        texts = [" ".join(rng.choice(words, rng.integers(0, 14))) for _ in range(2)]
        found.append({"text": texts[0]} | ({"pair": texts[1]} if number % 3 == 2 else {}))
    return found


def said(command: Path, opened: Bundle, *words: object) -> subprocess.CompletedProcess[str]:
    """What eecompile-run says."""
    line = [command, opened.files.path, *map(str, words), "--threads", str(opened.threads)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def of_file(command: Path, opened: Bundle, lines: list[dict[str, Any]], folder: Path, *words: object) -> list[Any]:
    """What it answers to each line of a file."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    done = said(command, opened, "--input", source, "--output", target, *words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return [json.loads(line) for line in target.read_text().splitlines()]


def as_json(found: Any) -> Any:
    """A classification after its way through JSON."""
    return json.loads(json.dumps(as_object(found)))


def assert_same(found: Any, expected: Any) -> None:
    """The same but for the last bits of probabilities, which two libraries' exponentials differ in."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-300)
    elif isinstance(expected, dict | list):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(found[key], expected[key])
    else:
        assert found == expected


def stats_json(stats: ClassifyStats) -> dict[str, Any]:
    return {
        "tokens": stats.tokens, "mean_depth": stats.mean_depth, "segment_passes": stats.passes,
        "layer_rows": stats.layer_rows, "frozen_rows": stats.frozen_rows,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "kv"), WALKS)
@pytest.mark.parametrize("mode", c.CLASSIFY_MODES)
def test_answers_are_the_python_runtimes(
    walks: dict[tuple[str, str], Bundle], command: Path, tmp_path: Path, kind: str, kv: str, mode: str
) -> None:
    """Every text of a file, in batches of one size, and what three of them cost alone."""
    opened = walks[kind, kv]
    own, lines = opened.classifier(mode), records(opened, len(kind) + len(mode))
    assert own.per_token == (kv == "propagate")
    found = of_file(command, opened, lines, tmp_path, "--mode", mode, "--batch", 7)
    expected, stats = own.run(list(read_texts(tmp_path / "in.jsonl")), 7)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, as_json(other))
    assert len(stats.exit_layers) > 2 or mode == "full"
    for line in [line for line in lines if "prompt_ids" in line][:3]:
        words = ["--prompt-ids", ",".join(map(str, line["prompt_ids"])), "--mode", mode, "--json"]
        done = said(command, opened, *words)
        assert done.returncode == 0, done.stderr
        [alone], cost = own.run([line["prompt_ids"]])
        one = json.loads(done.stdout)
        assert one["stats"].pop("seconds") > 0
        assert_same(one, as_json(alone) | {"mode": mode, "stats": stats_json(cost)})


def made_or_refused(opened: Bundle, **options: Any) -> Classifier | EECompileError:
    """The Python classifier of confident mode, or why there is none."""
    try:
        return opened.classifier("confident", **options)
    except EECompileError as e:
        return e


@pytest.mark.parametrize("granularity", ["sentence", "token"])
def test_thresholds_and_granularities_are_allowed_as_in_python(
    plain: dict[str, Bundle], command: Path, tmp_path: Path, granularity: str
) -> None:
    safe, bold = [{"max_prob": 0.9}, None, {"max_prob": 0.8}], [{"max_prob": 0.7}, None, {"max_prob": 0.6}]
    kv = c.GRANULARITIES[granularity]
    points = [bold] if granularity == "sentence" else [safe, bold]
    opened, refused = te.calibrated(plain["tokens"], tmp_path / "bundle", kv, *points), 0
    cases: list[dict[int, Any]] = [
        {}, {1: 0.75, 3: None}, {1: 0.5}, {1: 0.9, 3: 0.8}, {1: None, 3: None}, {1: 0.75}, {2: 0.9}, {3: 1.5},
    ]  # fmt: skip
    for asked in (None, "sentence", "token"):
        for case, depth in [*((case, 0) for case in cases), ({}, 2)]:
            words = ["--mode", "confident", "--minimum-depth", depth, "--prompt-ids", "5,6,7", "--json"]
            words += [] if asked is None else ["--granularity", asked]
            for layer, value in case.items():
                words += ["--threshold", f"{layer}={'never' if value is None else value}"]
            done = said(command, opened, *words)
            overrides: Any = {n: None if v is None else {"max_prob": v} for n, v in case.items()}
            own = made_or_refused(opened, granularity=asked, minimum_depth=depth, thresholds=overrides)
            if isinstance(own, EECompileError):
                assert (done.returncode, done.stdout) == (own.exit_status, ""), (asked, case, depth)
                refused += 1
                continue
            assert done.returncode == 0, (asked, case, depth, done.stderr)
            assert_same(json.loads(done.stdout)["tokens"], as_json(own.classify([[5, 6, 7]])[0])["tokens"])
    assert 5 < refused < 24


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["the", "--mode", "exact"], 2, "no mode exact"),
        (["the", "--mode", "sleepy"], 2, "modes: full, confident"),
        (["the", "--mode", "confident"], 2, "calibrate"),
        (["the", "--granularity", "token"], 2, "granularities of a sequence-classification: sentence"),
        (["the", "--minimum-depth", 9], 2, "minimum depth"),
        (["the", "--budget", 0], 2, "budget"),
        (["--prompt-ids", "5,5,5", "--budget", 11], 2, "12 layer-rows"),
        (["--prompt-ids", ""], 2, "no tokens"),
        (["--prompt-ids", "1,96"], 2, "outside 0..95"),
        (["--prompt-ids", ",".join(["5"] * 79)], 2, "79 tokens does not fit the context of 78"),
        (["the", "--temperature", 1], 2, "--temperature is not for a model that classifies texts"),
        (["the", "--output", "x"], 2, "--output goes with --input"),
        (["--input", "nowhere.jsonl"], 2, "cannot be read"),
        (["--input", "x.jsonl", "the"], 2, "give either"),
    ],
)
def test_what_cannot_be_classified_says_why(
    plain: dict[str, Bundle], command: Path, words: list[Any], status: int, message: str
) -> None:
    done = said(command, plain["sequence"], *words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert message in done.stderr


def test_a_language_model_classifies_nothing(shelf: Any, command: Path) -> None:
    done = said(command, shelf.bundle(), "--prompt-ids", 1, "--granularity", "token")
    assert (done.returncode, "generates text" in done.stderr) == (2, True)


@pytest.mark.skipif(not WITH_TEXT, reason="the sources have no tokenizer")
def test_texts_of_a_file_fail_alone_or_are_cut_off(plain: dict[str, Bundle], command: Path, tmp_path: Path) -> None:
    opened = plain["tokens"]
    lines = [{"text": "the cat"}, {"text": "the " * 90, "pair": "a dog " * 9}, {"prompt_ids": [5] * 90}]
    cut = opened.classifier(truncate=True)
    found = of_file(command, opened, lines, tmp_path, "--truncate")
    for one, other in zip(found, cut.classify(list(read_texts(tmp_path / "in.jsonl"))), strict=True):
        assert_same(one, as_json(other))
    done = said(command, opened, "--input", tmp_path / "in.jsonl")
    whole, long, ids = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, "2 of 3 texts failed" in done.stderr) == (1, True)
    assert_same(whole, as_json(cut.classify(["the cat"])[0]))
    assert "does not fit the context" in long["error"]
    assert "90 tokens" in ids["error"]
    (tmp_path / "in.jsonl").write_text('{"text": "the"}\n{"words": 1}\n')
    done = said(command, opened, "--input", tmp_path / "in.jsonl")
    assert (done.returncode, "in.jsonl:2" in done.stderr) == (2, True)


@pytest.mark.skipif(not WITH_TEXT, reason="the sources have no tokenizer")
def test_a_single_text_is_printed(plain: dict[str, Bundle], command: Path) -> None:
    done = said(command, plain["tokens"], "the cat", "--pair", "a dog")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["the", "cat", "a", "dog"]
    [found] = plain["sequence"].classifier().classify(["the cat"])
    done = said(command, plain["sequence"], "the cat")
    assert done.stdout.splitlines()[0] == f"{found.label} after 4 layers"
    [value] = plain["regression"].classifier().classify(["the cat"])
    done = said(command, plain["regression"], "the cat")
    assert done.stdout == f"score {value.scores[0]:.6g} after 4 layers\n"


def of_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest, and every overlay with it, so that nothing but the change is at fault."""

    def rewrite(root: Path) -> None:
        for path in [root / c.MANIFEST, *sorted((root / "overlays").iterdir())]:
            document = json.loads(path.read_text())
            if path.name == c.MANIFEST:
                change(document)
            else:
                document["core"] = json.loads((root / c.MANIFEST).read_text())["digest"]
            document["digest"] = document_digest(document)
            path.write_bytes(document_layout(document))

    return rewrite


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no-labels": lambda d: d.update(labels=[]),
    "fewer-labels": lambda d: d["labels"].pop(),
    "no-encoder": lambda d: d.update(encoder=None),
    "another-task": lambda d: d.update(task="regression"),
    "a-language-model": lambda d: d.update(task="causal-lm"),
    "caches": lambda d: d.update(kv_rules=["catch_up"]),
    "another-gate": lambda d: d["exits"][0].update(gates=["delta"]),
    "patience": lambda d: d["exits"][0].update(gates=["patience"]),
    "wider": lambda d: d["model"].update(hidden=64),
    "frozen-rows-missing": lambda d: d["graphs"]["segments"][0]["inputs"].pop(1),
    "an-exit-elsewhere": lambda d: d["exits"][0].update(layer=2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_classifier_is_refused_by_both(
    plain: dict[str, Bundle], command: Path, tmp_path: Path, damage: str
) -> None:
    root = shutil.copytree(plain["tokens"].files.path, tmp_path / "bundle")
    of_manifest(DAMAGES[damage])(root)
    with pytest.raises(EECompileError) as refused:
        Bundle.open(root, integrity="hash")
    done = subprocess.run([command, root, "--prompt-ids", "1"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (refused.value.exit_status, ""), done.stderr
    assert done.returncode == 4


RAMPART = INPUTS.parent / "rampart" / "bundle-600-fp32"


@pytest.mark.real
@pytest.mark.skipif(not (RAMPART / c.MANIFEST).exists(), reason=f"no {RAMPART}")
def test_rampart_answers_as_the_python_runtime(command: Path, tmp_path: Path) -> None:
    opened = Bundle.open(RAMPART, integrity="size")
    mails = [json.loads(line) for line in (INPUTS / "mails" / "heldout.jsonl").read_text().splitlines()[:5]]
    texts = [" ".join(mail["texts"]) for mail in mails]
    lines = [{"text": text} for text in texts]
    thresholds = [e.confident for e in opened.files.policy.exits]
    single = te.calibrated(opened, tmp_path / "bundle", "propagate", thresholds)
    for bundle, mode, granularity in (
        (opened, "full", "sentence"), (opened, "confident", "sentence"), (single, "confident", "token"),
    ):  # fmt: skip
        own = bundle.classifier(mode, granularity=granularity, truncate=True)
        found = of_file(command, bundle, lines, tmp_path, "--mode", mode, "--granularity", granularity, "--truncate")
        expected, stats = own.run(texts)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, as_json(other))
        assert len(stats.exit_layers) > 1 or mode == "full"
