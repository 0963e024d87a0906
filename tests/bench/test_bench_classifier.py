"""Measuring classifiers: what is compared with what, and pages and tables of it."""

from pathlib import Path

import pytest
import tiny_encoder as te

from eecompile.bench.classifier import classifier_tables, measure_classifiers, run_classifier_bench
from eecompile.bench.report import write_report
from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.classify import Classifier
from eecompile.runtime.labels import ClassRule
from eecompile.runtime.texts import TextEncoder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bench")
    source = te.add_tokenizer(te.checkpoint(root / "tokens", te.config("bert", "tokens"), gain=0.3))
    return te.open_bundle(root / "bundle", source, [1, 3])


def test_a_plain_bundle_is_measured_at_full_depth(opened: Bundle) -> None:
    result = run_classifier_bench(opened, ["the cat", "a dog sat on the mat"], rounds=2)
    assert [(r.contender, r.batch) for r in result.results] == [("full", 1), ("full", 32)]
    assert "calibration" in result.refused
    for r in result.results:
        assert (r.speedup, r.agreement, r.mean_depth, r.layer_rows, r.frozen_rows) == (1.0, 1.0, 4.0, 4.0, 0.0)
        assert len(r.round_seconds) == 2
    assert (result.texts, result.tokens) == (2, 4 + 8)
    assert run_classifier_bench(opened, rounds=1).texts == 8
    assert any("refused" in str(cell) for row in classifier_tables(result)[0][2] for cell in row)
    with pytest.raises(UsageError, match="measure nothing"):
        run_classifier_bench(opened, rounds=0)


def test_agreement_and_work_are_counted(opened: Bundle) -> None:
    encoder = TextEncoder(opened.manifest, opened.text)

    def at(*rules: ClassRule | None, **options: bool) -> Classifier:
        return Classifier(opened.manifest, opened.graphs, encoder, rules, **options)

    always = ClassRule.of({"fixed": 0.0})
    texts = ["the cat sat on the mat", "it was a dog", "then the cat ran"]
    contenders = {"full": at(None, None), "first": at(always, None), "kept": at(always, None, compaction=False)}
    full, first, kept = measure_classifiers(contenders, texts, [3], 1)
    assert (full.mean_depth, first.mean_depth, first.layer_rows, kept.layer_rows) == (4.0, 1.0, 1.0, 1.0)
    assert first.agreement == kept.agreement < 1.0
    same = at(None, None).classify(texts)
    early = at(always, None).classify(texts)
    pairs = [
        (a.label, b.label)
        for x, y in zip(early, same, strict=True)
        for a, b in zip(x.tokens or [], y.tokens or [], strict=True)
    ]
    assert first.agreement == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_the_report_shows_the_table(opened: Bundle, tmp_path: Path) -> None:
    result = run_classifier_bench(opened, ["the cat"], rounds=1)
    page = write_report(opened.files.path, None, tmp_path / "page.html", classifier=result).read_text()
    assert "every text runs at full depth" in page
    assert "layer-rows" in page
    assert "tokens/s" not in page
