"""`bench --kv`: what is known of the rules beforehand shows in the figures."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from eecompile import contract as c
from eecompile.bench.bench import bench_tables, run_bench
from eecompile.bench.kv import bench_rules
from eecompile.bench.results import BenchResult
from eecompile.errors import UsageError
from eecompile.runtime import Bundle

PROMPTS = [[5, 17, 101], [9, 9, 120, 6]]
TOKENS = 37


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("kv")
    source = tiny.checkpoint(folder / "checkpoint")
    return tiny.open_bundle(folder / "bundle", source, [1, 3], kv=c.KV_RULES)


def test_catch_up_agrees_always_and_the_others_where_nothing_left(bundle: Bundle) -> None:
    stages: list[str] = []
    found = bench_rules(bundle, PROMPTS, max_new_tokens=TOKENS, progress=stages.append)
    points = {(p.rule, p.pending): p for p in found.points}
    assert set(points) == {(rule, n) for rule in c.KV_RULES for n in range(9)}
    assert found.layer == 1
    assert len(stages) == 9
    for (rule, n), point in points.items():
        assert point.tokens == 2 * ((TOKENS - 1) // (n + 1))
        assert point.tokens_per_second > 0
        if rule == "catch_up" or n == 0:
            assert point.agreement == 1
    assert len({points[rule, 0].perplexity for rule in c.KV_RULES}) == 1
    for rule in c.APPROXIMATE:
        assert min(points[rule, n].agreement for n in range(1, 9)) < 1
        assert points[rule, 8].perplexity > points["catch_up", 8].perplexity
    assert points["selected", 8].perplexity != points["propagate", 8].perplexity


def test_it_is_part_of_a_bench(bundle: Bundle) -> None:
    found = run_bench(bundle, PROMPTS[:1], max_new_tokens=4, rounds=1, kv=True)
    assert BenchResult.model_validate_json(found.model_dump_json()) == found
    [table] = [rows for title, _, rows in bench_tables(found) if "after 1 layers" in title]
    assert len(table) == 27


def test_one_rule_is_nothing_to_compare(shelf: Any) -> None:
    with pytest.raises(UsageError, match="--kv catch_up,propagate,selected"):
        bench_rules(shelf.bundle(at=[1]), PROMPTS, max_new_tokens=4)
