"""Documents of an encoder-decoder: sources with their targets, or with what the model says to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile.calibrate.calibrate import apply_calibration, calibrate_file
from eecompile.calibrate.documents import Document, load_documents
from eecompile.calibrate.exits import fit_exits
from eecompile.calibrate.plan import ExitPlan
from eecompile.calibrate.targets import DocumentTracer
from eecompile.errors import Uncalibrated, UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle

AT, RISK = [1, 2], 0.4
SMALL = tiny_t5.newer(num_layers=1, num_decoder_layers=3)


def write(path: Path, pairs: bool, count: int = 100) -> Path:
    """Documents of random ids, with random targets or without."""
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = [{"source": rng.integers(2, tiny.VOCAB, 10).tolist()} for _ in range(count)]
    for line in lines if pairs else []:
        line["target"] = rng.integers(2, tiny.VOCAB, 9).tolist()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_target_is_what_the_model_says(shelf: Any) -> None:
    opened = shelf.bundle(SMALL, AT)
    said = tiny.tokens(opened, tiny_t5.SOURCES[1], 12)
    trace = DocumentTracer(opened, 12).trace(Document("fit", tiny_t5.SOURCES[1]))
    assert trace.ids.tolist() == [0, *said[:-1]]
    assert trace.final.token.tolist() == said
    assert [len(exit_.token) for exit_ in trace.exits] == [len(said)] * 2


def test_a_pair_brings_its_own_target(shelf: Any) -> None:
    opened = shelf.bundle(SMALL, AT)
    trace = DocumentTracer(opened, 4).trace(Document("fit", [5, 6, 7], [9, 8, 7, 6, 5, 4]))
    assert trace.ids.tolist() == [0, 9, 8, 7]


def test_a_decoder_knows_no_pairs(shelf: Any) -> None:
    opened = shelf.bundle(tiny.config(), [1, 3])
    tracer = DocumentTracer(opened, 8)
    assert tracer.trace(Document("fit", [5, 6, 7])).ids.tolist() == [5, 6, 7]
    with pytest.raises(UsageError, match="pairs of source and target"):
        tracer.trace(Document("fit", [5, 6, 7], [8]))


def test_pairs_are_read_and_a_source_is_in_one_split(tmp_path: Path) -> None:
    ids = list(range(2, 12))
    lines = [{"source": ids, "target": [3, 4]}, {"source": ids, "target": [5]}, {"source": ids[::-1]}, {"source": []}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    documents = load_documents(path)
    found = list(documents.stream(None, vocab=tiny.VOCAB, context=64, splits=("fit", "path", "test")))
    assert [(d.ids, d.target) for d in found] == [(ids, [3, 4]), (ids[::-1], None)]


@pytest.mark.parametrize("line", ['{"source": 3}', '{"target": "t"}', '{"source": "s", "target": 4}'])
def test_lines_that_are_no_pair(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match="source"):
        load_documents(tmp_path / "bad.jsonl")


PLANS = {
    "learned": ExitPlan.of(["learned"]),
    "small heads": ExitPlan.of(["router", "predictor", "max_prob"], "low_rank", rank=32, tokens=120),
}


@pytest.mark.parametrize("name", PLANS)
def test_exits_are_fitted_and_calibrated_to_confident_mode(tmp_path: Path, name: str) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint", SMALL, gain=0.3)
    summary = fit_exits(
        source, AT, write(tmp_path / "sources.jsonl", False), tmp_path / "student", risk=RISK, max_tokens=12,
        build_bundle=build_plain, plan=PLANS[name],
    )  # fmt: skip
    assert summary["chosen"]["exit_rate"] > 0
    for exit_ in summary["exits"]:
        assert exit_["agreement"] > exit_["plain_agreement"]
    opened = tiny.open_bundle(tmp_path / "bundle", tmp_path / "student", precision="fp32")
    generation = opened.session(mode="confident").generate(tiny_t5.SOURCES[1], max_new_tokens=24, stop=())
    assert len(list(generation)) == 24
    assert generation.stats.mean_depth < 3


def test_a_bundle_is_calibrated_on_pairs(tmp_path: Path) -> None:
    path = tiny.bundle_at(tmp_path / "bundle", tiny.checkpoint(tmp_path / "checkpoint", SMALL, gain=0.3), AT)
    opened = Bundle.open(path)
    with pytest.raises(Uncalibrated):
        opened.session(mode="confident")
    result = calibrate_file(opened, write(tmp_path / "pairs.jsonl", True), risk=RISK)
    assert result.chosen is not None
    assert result.tokens == 9 * result.documents
    apply_calibration(path, result)
    assert tiny.tokens(Bundle.open(path), [5, 6, 7], 8, mode="confident", stop=())
