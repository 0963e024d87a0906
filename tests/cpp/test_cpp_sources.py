"""Encoder-decoders in the C++ runtime against the Python one: every mode, precision and kind; and what both refuse."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_t5
from cpp_parity import both, said

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle, Sampling

EXITS = [1, 3]
DRAFTS: dict[int, Any] = {1: {"max_prob": 0.4}, 3: {"max_prob": 0.1}}
CASES = [("t5", "fp32"), ("t5", "int4"), ("t5-1.1", "int8"), ("t5-1.1-start", "fp16"), ("mt5", "fp32")]


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_tokens_are_the_python_runtimes(shelf: Any, command: Path, kind: str, precision: str) -> None:
    """Sources of one token, of a whole bucket, of one more, and long; greedy and sampled."""
    opened, seen = shelf.bundle(tiny_t5.variants()[kind], EXITS, precision=precision, gain=3.0), Counter[str]()
    for source in tiny_t5.SOURCES:
        both(command, opened, source, 12, "full", Sampling(), {})
        for how in (Sampling(), Sampling(temperature=0.9, seed=3)):
            found = both(command, opened, source, 30, "exact", how, DRAFTS)
            seen.update(drafted=found["stats"]["drafted"], rejected=found["stats"]["rejected"])
    assert seen["drafted"] > seen["rejected"] > 0


def test_many_sources_run_one_after_the_other(shelf: Any, command: Path, tmp_path: Path) -> None:
    """The pool of an encoder-decoder has one slot, whose source changes from request to request."""
    opened = shelf.bundle(tiny_t5.variants()["t5"], EXITS, gain=3.0)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt_ids": s}) + "\n" for s in tiny_t5.SOURCES))
    words = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--max-new-tokens", 20]
    done = said(command, opened.files.path, *words, "--threads", opened.threads)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["token_ids"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [tiny.tokens(opened, source, 20) for source in tiny_t5.SOURCES]


def test_sources_have_a_context_of_their_own(shelf: Any, command: Path) -> None:
    opened = shelf.bundle(tiny_t5.variants()["t5"], EXITS, context=20)
    both(command, opened, [5] * 20, None, "full", Sampling(), {})
    for words, message in (
        (["--prompt-ids", ",".join(["5"] * 21)], "21 tokens of source do not fit"),
        (["--prompt-ids", "5", "--max-new-tokens", "21"], "do not fit the context of 20"),
    ):
        done = said(command, opened.files.path, *words)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no-source": lambda d: d.update(source=None),
    "no-encoder": lambda d: d["graphs"].update(encoder=None),
    "start": lambda d: d["source"].update(start=tiny.VOCAB),
    "slots": lambda d: d.update(slots=2),
    "one-cross-less": lambda d: d["graphs"]["encoder"]["outputs"].pop(),
    "other-heads": lambda d: d["model"].update(heads=8),
    "propagate": lambda d: d.update(kv_rules=["catch_up", "selected"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_encoder_decoder_is_refused_by_both(shelf: Any, command: Path, tmp_path: Path, damage: str) -> None:
    opened = shelf.bundle(tiny_t5.variants()["t5"], EXITS, gain=3.0)
    root = shutil.copytree(opened.files.path, tmp_path / "bundle")
    document = json.loads((root / c.MANIFEST).read_text())
    DAMAGES[damage](document)
    document["digest"] = document_digest(document)
    (root / c.MANIFEST).write_bytes(document_layout(document))
    with pytest.raises(EECompileError) as refused:
        Bundle.open(root, integrity="hash")
    done = said(command, root, "--prompt-ids", 1)
    assert (done.returncode, done.stdout, refused.value.exit_status) == (4, "", 4), done.stderr
    assert "another build" not in done.stderr
