"""The C++ runtime short of memory, bytes and descriptors, and under load: a status, the same tokens, no growth."""

from pathlib import Path
from typing import Any

import pytest
import stressed
import tiny
import tokenizer_made as made

from eecompile import contract as c
from eecompile.bundle.write import write_overlay
from eecompile.student.exits import ExitSpec

GAIN = 0.35
LEARNED = {"learned": 0.3, "max_prob": 0.05}
MISSING = 4  # EECOMPILE_MISSING_BACKEND


@pytest.fixture(scope="module")
def stress() -> Path:
    """The programs with the address sanitizer on."""
    return stressed.built("address")


@pytest.fixture(scope="module")
def bundle(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle with learned gates, whose exits fire, and which has a tokenizer."""
    exits = [ExitSpec(layer=n, adapter="affine", gates=list(LEARNED), gate_units=4) for n in (1, 3)]  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("stress")
    source = tiny.checkpoint(folder / "model", tiny.config(vocab_size=tiny.TOKENIZER_IDS), gain=GAIN)
    tiny.add_exits(tiny.add_tokenizer(source), exits, gain=GAIN)
    path = tiny.bundle_at(folder / "bundle", source)
    opened = tiny.calibrate(path, [LEARNED] * 2)
    drafts = [{**exit.model_dump(), "draft": LEARNED} for exit in opened.files.policy.exits]
    write_overlay(path, c.POLICY, {"exits": drafts, "kv": "catch_up"})
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer with a normaliser and added tokens."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(made.with_added(made.word_piece()).to_str(), encoding="utf-8")
    return path


def test_memory_may_run_out_anywhere(stress: Path, bundle: Path, tokenizer: Path) -> None:
    """Every so many allocations; the slow test takes each one."""
    options = {"onnxruntime": stressed.ONNXRUNTIME, "tokenizer": tokenizer, "every": 43, "every_open": 1999}
    assert_starved(stressed.ask(stress, "starve", bundle, **options))


@pytest.mark.slow
def test_memory_may_run_out_at_every_allocation(stress: Path, bundle: Path, tokenizer: Path) -> None:
    options = {"onnxruntime": stressed.ONNXRUNTIME, "tokenizer": tokenizer, "every": 1, "every_open": 29}
    assert_starved(stressed.ask(stress, "starve", bundle, **options))


def assert_starved(report: dict[str, Any]) -> None:
    """All that was starved failed at times, and did else what it always does."""
    assert {name: one["code"] for name, one in report.items()} == {
        "read": MISSING, "tokenize": 0, "full": 0, "exact": 0, "confident": 0, "open": 0
    }  # fmt: skip
    for one in report.values():
        assert one["times"] > one["survived"]


def test_reads_may_be_short_interrupted_or_fail(stress: Path, bundle: Path, tokenizer: Path) -> None:
    assert stressed.ask(stress, "shorten", bundle, tokenizer=tokenizer)["failed"] > 10


@pytest.mark.parametrize("mode", ["exact", "confident"])
def test_sessions_at_once_have_the_tokens_that_each_has_alone(stress: Path, bundle: Path, mode: str) -> None:
    options = {"onnxruntime": stressed.ONNXRUNTIME, "mode": mode, "sessions": 24, "tokens": 12}
    assert stressed.ask(stress, "sessions", bundle, **options)["requests"] == 48


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "exact", "confident"])
def test_sixty_four_sessions_race_for_nothing(bundle: Path, mode: str) -> None:
    """Under the thread sanitizer."""
    options = {"onnxruntime": stressed.ONNXRUNTIME, "mode": mode, "sessions": 64, "tokens": 24}
    assert stressed.ask(stressed.built("thread"), "sessions", bundle, **options)["requests"] == 128


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "exact", "confident"])
def test_a_hundred_thousand_tokens_leave_memory_flat(bundle: Path, mode: str) -> None:
    options = {"onnxruntime": stressed.ONNXRUNTIME, "mode": mode, "tokens": 100_000}
    report = stressed.ask(stressed.built("none"), "tokens", bundle, **options)
    assert report["tokens"] >= 100_000
    assert report["own_late_kb"] - report["own_early_kb"] < 512, report


@pytest.mark.slow
def test_ten_thousand_openings_leave_nothing_behind(bundle: Path) -> None:
    report = stressed.ask(stressed.built("none"), "opens", bundle, onnxruntime=stressed.ONNXRUNTIME, count=10_000)
    assert report["descriptors_late"] == report["descriptors_early"]
    assert report["own_late_kb"] - report["own_early_kb"] < 4 * 1024, report
