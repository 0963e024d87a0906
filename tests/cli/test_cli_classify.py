"""The commands on a classifier's bundle: labels and scores on stdout, files in order, faults in words."""

import json
from pathlib import Path

import pytest
import tiny
import tiny_encoder as te
from commands import cli, cli_json

from eecompile.errors import NumericError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and bundles of each task, and one that generates text."""
    root = tmp_path_factory.mktemp("cli")
    for task in te.TASKS:
        source = te.add_tokenizer(te.checkpoint(root / task, te.config("bert", task), gain=0.3))
        te.open_bundle(root / f"{task}-bundle", source, [1, 3])
    tiny.bundle_at(root / "lm-bundle", tiny.checkpoint(root / "lm"), [2])
    lines = [{"text": f"{a} {b} {c}"} for a in te.WORDS[4:16] for b in te.WORDS[4:12] for c in ("sat", "ran")]
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def test_build_plans_and_builds(place: Path, tmp_path: Path) -> None:
    plan = cli_json("build", place / "tokens", "-o", tmp_path / "b", "--exits", "2", "--dry-run")
    assert (plan["task"], plan["layers"], plan["family"]) == ("token-classification", 4, "bert")
    said = cli_json(
        "build", place / "tokens", "-o", tmp_path / "b", "--exits", "2", "--precision", "int8", "--context", "40"
    )
    assert (said["precision"], said["context"], said["exits"]) == ("int8", 40, [2])
    assert cli_json("inspect", tmp_path / "b")["manifest"]["labels"] == ["O", "B", "I", "E"]
    assert "labels O, B, I, E" in cli("inspect", tmp_path / "b").stdout
    assert "41 tokens does not fit the context of 40" in cli("run", tmp_path / "b", "the " * 39, status=2).stderr
    cli("run", tmp_path / "b", "the " * 39, "--truncate")


def test_run_prints_label_scores_and_depth(place: Path) -> None:
    said = cli_json("run", place / "sequence-bundle", "the cat sat")
    assert said["label"] == ["bad", "fair", "good"][max(range(3), key=said["scores"].__getitem__)]
    assert sum(said["scores"]) == pytest.approx(1)
    assert (said["exit_layer"], said["mode"]) == (4, "full")
    printed = cli("run", place / "sequence-bundle", "the cat sat").stdout
    assert printed.splitlines()[0] == f"{said['label']} after 4 layers"
    assert len(printed.splitlines()) == 4
    value = cli_json("run", place / "regression-bundle", "the cat sat")
    assert value["label"] == "score"
    assert f"score {value['scores'][0]:.6g}" in cli("run", place / "regression-bundle", "the cat sat").stdout
    assert cli_json("run", place / "sequence-bundle", "the cat", "--pair", "a dog")["scores"] != said["scores"]


def test_run_prints_a_line_a_token(place: Path) -> None:
    said = cli_json("run", place / "tokens-bundle", "the dogs sat")
    assert [(t["text"], t["start"], t["end"], t["exit_layer"]) for t in said["tokens"]] == [
        ("the", 0, 3, 4), ("dog", 4, 7, 4), ("s", 7, 8, 4), ("sat", 9, 12, 4),
    ]  # fmt: skip
    printed = cli("run", place / "tokens-bundle", "the dogs sat").stdout
    assert all(t["label"] in printed and t["text"] in printed for t in said["tokens"])
    ids = cli_json("run", place / "tokens-bundle", "--prompt-ids", "2,4,7,20,8,3")
    assert [t["scores"] for t in ids["tokens"]][1:-1] == [t["scores"] for t in said["tokens"]]
    assert ids["tokens"][0]["start"] is None


def test_a_file_is_answered_line_by_line(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [{"text": "the cat"}, {"prompt_ids": [2, 5, 3]}, {"text": "a dog", "pair": "the cat sat on the mat"}]
    source.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    cli("run", place / "sequence-bundle", "--input", source, "--output", tmp_path / "out.jsonl", "--batch", "2")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(answers) == 3
    assert answers[0]["scores"] == cli_json("run", place / "sequence-bundle", "the cat")["scores"]
    assert answers[1]["scores"] == cli_json("run", place / "sequence-bundle", "--prompt-ids", "2,5,3")["scores"]
    printed = cli("run", place / "sequence-bundle", "--input", source).stdout
    assert [json.loads(line) for line in printed.splitlines()] == answers
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_failing_file_leaves_the_old_answers(place: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "the cat"}\n{"text": 3}\n')
    (tmp_path / "out.jsonl").write_text("old")
    arguments = ("run", place / "sequence-bundle", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert "in.jsonl:2" in cli(*arguments, status=2).stderr
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_calibrate_then_confident(place: Path, tmp_path: Path) -> None:
    cli("build", place / "tokens", "-o", tmp_path / "b", "--exits", "1,3")
    options = ("--data", place / "texts.jsonl", "--risk", "0.3", "--granularity", "token")
    said = cli_json("calibrate", tmp_path / "b", *options)
    assert said["chosen"] is not None
    depth = cli_json("run", tmp_path / "b", "the cat sat", "--mode", "confident")["exit_layer"]
    assert 1 <= depth <= 4
    assert "exits per token" in cli("inspect", tmp_path / "b").stdout
    assert "permitted" in cli("policy", tmp_path / "b", "show").stdout
    cli("policy", tmp_path / "b", "set", "--threshold", "1=never", "--threshold", "3=never")
    assert cli_json("run", tmp_path / "b", "the cat sat", "--mode", "confident")["exit_layer"] == 4
    assert (
        "drafts nothing"
        in cli("policy", tmp_path / "b", "set", "--mode", "draft", "--threshold", "1=1", status=2).stderr
    )
    key = tmp_path / "key.pem"
    cli("sign", tmp_path / "b", "--key", key, "--new-key")
    cli("check", tmp_path / "b", "--key", f"{key}.pub")


def test_exits_fits_a_student(place: Path, tmp_path: Path) -> None:
    said = cli_json(
        "exits", place / "tokens", "--at", "2", "--fit", place / "texts.jsonl", "--risk", "0.3", "-o", tmp_path / "s"
    )
    assert said["exits"][0]["layer"] == 2
    cli("build", tmp_path / "s", "-o", tmp_path / "b")
    assert cli_json("verify", tmp_path / "b")["passed"]


def test_bench_and_report(place: Path, tmp_path: Path) -> None:
    said = cli_json("bench", place / "sequence-bundle", "--rounds", "1")
    assert said["results"][0]["contender"] == "full"
    assert "full" in cli("bench", place / "regression-bundle", "--rounds", "1").stdout
    cli("report", place / "tokens-bundle", "--rounds", "1", "-o", tmp_path / "page.html")
    assert "<table>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "sequence-bundle"], "give one of"),
        (["run", "sequence-bundle", "hi", "--prompt-ids", "1"], "give one of"),
        (["run", "sequence-bundle", "hi", "--mode", "exact"], "no mode exact"),
        (["run", "sequence-bundle", "hi", "--mode", "confident"], "eecompile calibrate"),
        (["run", "sequence-bundle", "hi", "--granularity", "token"], "granularities"),
        (["run", "sequence-bundle", "hi", "--max-new-tokens", "3"], "classifies texts"),
        (["run", "sequence-bundle", "hi", "--temperature", "1"], "classifies texts"),
        (["run", "sequence-bundle", "hi", "--stream"], "classifies texts"),
        (["run", "sequence-bundle", "hi", "--output", "x.jsonl"], "goes with --input"),
        (["run", "sequence-bundle", "--prompt-ids", "1,999"], "outside 0..95"),
        (["run", "sequence-bundle", "--prompt-ids", ","], "no tokens"),
        (["run", "sequence-bundle", "--input", "nowhere.jsonl"], "cannot be read"),
        (["run", "sequence-bundle", "the " * 90], "--truncate"),
        (["run", "lm-bundle", "--prompt-ids", "1", "--granularity", "token"], "generates text"),
        (["run", "lm-bundle", "--input", "x.jsonl"], "go together"),
        (
            ["calibrate", "lm-bundle", "--data", "texts.jsonl", "--granularity", "token"],
            "generates text",
        ),
        (["calibrate", "sequence-bundle", "--data", "texts.jsonl", "--granularity", "token"], "granularities"),
        (["calibrate", "sequence-bundle", "--data", "nowhere.jsonl"], "no documents here"),
        (["profile", "sequence-bundle"], "generate text are profiled"),
        (["bench", "sequence-bundle", "--against", "genai"], "classifies texts"),
        (["bench", "sequence-bundle", "--batch", "4"], "classifies texts"),
        (["exits", "sequence", "--at", "2", "--fit", "texts.jsonl", "-o", "x", "--gates", "max_prob"], "classifies"),
        (["bench", "sequence-bundle", "--max-new-tokens", "4"], "classifies texts"),
        (["report", "sequence-bundle", "--max-new-tokens", "4"], "classifies texts"),
        (["build", "sequence", "-o", "x", "--pending-cap", "4"], "an encoder has no pending cap"),
        (["build", "sequence", "-o", "x", "--minimum-rows", "2"], "an encoder has no minimum"),
        (["build", "sequence", "-o", "x", "--batch", "8"], "an encoder has no number of slots"),
        (["build", "sequence", "-o", "x", "--context", "99"], "context 99"),
        (["exits", "lm", "--at", "2", "--fit", "texts.jsonl", "-o", "x", "--granularity", "token"], "generates text"),
    ],
)
def test_faults_say_what_and_how_to_mend(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(place)
    result = cli(*arguments, status=2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (place / "x").exists()


def test_logits_that_are_not_finite_are_status_1(place: Path, tmp_path: Path) -> None:
    import numpy as np

    spoilt = te.checkpoint(tmp_path / "c", te.config(), **{"classifier.bias": np.array([np.inf, 0, 0], np.float32)})
    te.open_bundle(tmp_path / "b", spoilt)
    assert "not finite" in cli("run", tmp_path / "b", "--prompt-ids", "2,5", status=NumericError.exit_status).stderr
