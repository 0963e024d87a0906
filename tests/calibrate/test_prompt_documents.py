"""What is calibrated where documents have prompts: the tokens after them, and nothing of the prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.calibrate.calibrate import calibrate_file
from eecompile.calibrate.documents import load_documents
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.tables import trace_tables
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle
from eecompile.runtime.forced import run_forced
from eecompile.runtime.trace import Tracer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A tiny bundle with a tokenizer and both K/V rules, and documents with prompts of many lengths."""
    folder = tmp_path_factory.mktemp("prompts")
    source = tiny.checkpoint(folder / "checkpoint", tiny.config(vocab_size=tiny.TOKENIZER_IDS), gain=0.2)
    tiny.add_tokenizer(source)
    bundle = tiny.bundle_at(folder / "bundle", source, [1, 3], kv=("catch_up", "propagate"))
    rng, path = np.random.default_rng(0), folder / "pairs.jsonl"
    words = ["".join(rng.choice(list("abcdefgh "), rng.integers(12, 30))) for _ in range(240)]
    lines = [{"prompt": "q" + a, "completion": "=" + b} for a, b in zip(words[::2], words[1::2], strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Bundle.open(bundle), path


def stream(bundle: Bundle, path: Path, split: Any, limit: int | None = None) -> list[Any]:
    model = bundle.manifest.model
    found = load_documents(path, limit=limit).stream(
        bundle.text, vocab=model.vocab, context=model.context, splits=[split]
    )
    return list(found)


def test_a_table_has_the_tokens_after_the_prompts(place: tuple[Bundle, Path]) -> None:
    bundle, path = place
    table = trace_tables(bundle, load_documents(path), ("test",), lambda stage: None)["test"]
    documents, tracer = stream(bundle, path, "test"), Tracer(bundle)
    assert np.diff(table.starts).tolist() == [len(d.ids) - d.first for d in documents]
    assert len({d.first for d in documents}) > 3
    expected = [t.exits[0].max_prob[d.first :] for d in documents for t in [tracer.trace(d.ids)]]
    np.testing.assert_array_equal(table.exits[0].values["max_prob"], np.concatenate(expected))


def test_forced_runs_side_by_side_have_prompts_of_their_own_length(place: tuple[Bundle, Path]) -> None:
    bundle, path = place
    documents = stream(bundle, path, "test")[:5]
    settings = bundle.settings(mode="full")
    together = run_forced(bundle, settings, [d.ids for d in documents], first=[d.first for d in documents])
    for document, run in zip(documents, together, strict=True):
        assert run.tokens == Tracer(bundle, exits=False).trace(document.ids).final.token[document.first :].tolist()


@pytest.mark.parametrize("kv", ["catch_up", "propagate"])
def test_both_rules_calibrate_on_completions(place: tuple[Bundle, Path], kv: str) -> None:
    bundle, path = place
    result = calibrate_file(bundle, path, risk=0.4, error=0.3, kv=kv, limit=30)
    assert result.documents == len(documents := stream(bundle, path, "test", 30))
    assert result.tokens == sum(len(d.ids) - d.first for d in documents)


def test_exits_are_fitted_on_completions(place: tuple[Bundle, Path], tmp_path: Path) -> None:
    """With prompts longer than a document may be; there is no room for their rows."""
    source, options = place[1].parent / "checkpoint", {"risk": 0.3, "max_tokens": 10, "build_bundle": build_plain}
    summary = fit_exits(source, [2], place[1], tmp_path / "student", **options)
    assert summary["exits"]
