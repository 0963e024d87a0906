"""The chain against the uncut graph, and what a bundle's recorded prompt gives each graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.cycles import CycleSpec
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.loops import Loops
from eecompile.verify.chain import Chain
from eecompile.verify.expected import expected_outputs
from eecompile.verify.recording import UNCUT, Recording

HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=list(range(0, tiny.VOCAB, 2))),
]
CRITERIA = [
    ExitSpec(layer=1, gates=["router", "predictor", "max_prob"], head="few", router=RouterShape(choices=3),
             predictor=PredictorShape(head="few", units=5)),
    ExitSpec(layer=3, gates=["saturation", "patience", "margin"], head="thin"),
]  # fmt: skip
FITTED = [
    ExitSpec(
        layer=1, adapter="affine", gates=["learned", "entropy"], gate_units=4, draft={"learned": 0.5, "entropy": 4.0}
    ),
    ExitSpec(layer=2, adapter="layer", gates=["max_prob"]),
    ExitSpec(layer=3, adapter="mlp", gates=["max_prob"]),
]
LOOPS = Loops(prelude=1, block=1, loops=2, rank=2, projections=["q", "k", "down"])
BUNDLES: dict[str, dict[str, Any]] = {
    "exits": {"settings": tiny.config(), "exits": FITTED},
    "fused": {"settings": tiny.config(head_dim=16), "exits": FITTED[:1], "precision": "fp16"},
    "int4": {"settings": tiny.config(head_dim=16), "at": [1, 2], "precision": "int4"},
    "batch": {"settings": tiny.gpt2(), "exits": CRITERIA, "heads": HEADS, "slots": 2, "build": {"cache": "int8"}},
    "source": {"settings": tiny_t5.t5(), "at": [1, 3], "gain": 3.0},
    "recursive": {"settings": tiny.config(num_hidden_layers=3), "at": [1], "loops": LOOPS, "build": {"cache": "fp16"}},
    "selected": {"settings": tiny.config(), "at": [1, 3], "build": {"kv": ("catch_up", "selected")}},
}
EXPECTED: Mapping[str, set[str]] = {  # graphs that somebody else computes
    "exits": {"segment_0", "segment_1", "segment_2", "segment_3", "exit_0", "head"},
    "batch": {"segment_0", "segment_1", "segment_2", "exit_0", "exit_1", "head", "head_thin", "head_few"},
    "recursive": {"segment_0", "segment_2", "exit_0", "head"},
}


@pytest.fixture(params=list(BUNDLES))
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of bundle."""
    return str(request.param)


@pytest.fixture
def bundle(shelf: Any, kind: str) -> Bundle:
    """A bundle of that kind."""
    opened: Bundle = shelf.bundle(**BUNDLES[kind])
    return opened


def test_the_chain_computes_the_uncut_graph_s_bits(bundle: Bundle) -> None:
    recording = Recording(bundle.files)
    chain, uncut = recording.chain, recording.chain.uncut
    feeds = list(recording.feeds(UNCUT))
    for feed in feeds:
        outputs, expected = chain.infer(feed), chain.run_graph(uncut, feed)
        assert list(outputs) == [t.name for t in uncut.outputs]
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, expected[name], name)
    assert not np.array_equal(*(feed[uncut.outputs[0].name.removesuffix("_out")] for feed in feeds))


def test_the_recorded_prompt_s_inputs_are_valid(bundle: Bundle) -> None:
    """Ids of the vocabulary at consecutive positions; the last pass sees what the first one left in the caches."""
    recording = Recording(bundle.files)
    first, last = recording.feeds(UNCUT)
    rows = [feed[c.POSITIONS].shape[1] for feed in (first, last)]
    assert rows[0] > 1
    assert rows[1] == 1
    positions = np.concatenate([first[c.POSITIONS], last[c.POSITIONS]], axis=1)
    np.testing.assert_array_equal(positions, np.arange(sum(rows))[None])
    assert [int(feed[c.WRITE_INDEX][0]) for feed in (first, last)] == [0, rows[0]]
    ids = np.concatenate([first[c.TOKEN_IDS], last[c.TOKEN_IDS]], axis=1)
    assert 0 <= ids.min() <= ids.max() < bundle.manifest.model.vocab
    bounds = np.concatenate([first[c.THRESHOLDS], last[c.THRESHOLDS]])
    at_once = {**first, c.TOKEN_IDS: ids, c.POSITIONS: positions, c.THRESHOLDS: bounds}
    whole, apart = recording.chain.infer(at_once), recording.chain.infer(last)
    if bundle.manifest.precision != "int4":  # whose kernel for one row is another one
        np.testing.assert_array_equal(whole[c.LOGITS][-1:], apart[c.LOGITS])
    assert {bool(flag) for flag in whole[c.EXIT_FLAG]} == {True, False}  # thresholds that tell rows apart


def test_every_graph_does_what_somebody_else_expects(bundle: Bundle, kind: str) -> None:
    recording = Recording(bundle.files)
    expected = expected_outputs(bundle, recording)
    assert set(expected) == EXPECTED.get(kind, set(expected))
    for name, info in recording.graphs.items():
        runs = [recording.chain.run_graph(info, feed) for feed in recording.feeds(name)]
        assert len(runs) == (1 if name.startswith(("head", "encoder")) else 2 * max(1, len(recording.steps(name))))
        outputs, rules = expected.get(name, ([], None))
        for ran, wanted in zip(runs, outputs, strict=bool(rules)):
            assert rules is not None
            judged = rules.judge(ran, wanted)
            assert set(judged) == set(wanted)
            assert all(found.passed for found in judged.values()), (name, judged)


def test_an_exit_sees_the_rows_at_the_one_before(shelf: Any) -> None:
    recording = Recording(shelf.bundle(**BUNDLES["batch"]).files)
    for second, first in zip(recording.feeds("exit_1"), recording.feeds("exit_0"), strict=True):
        np.testing.assert_array_equal(second[c.PREVIOUS], first[c.HIDDEN])
        assert (first[c.CANDIDATES] == -1).all()


def test_a_graph_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no graph segment_9"):
        Recording(bundle.files).feeds("segment_9")


def test_a_bundle_without_an_uncut_graph_has_nothing_to_compare_with(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "model")
    cycle, rng = CycleSpec(first=1, layer=3), np.random.default_rng(0)
    shapes = cycle.shapes(int(tiny.config()["hidden_size"]))
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_exits(source, EarlyExit(exits=[], cycles=[cycle]), tensors)
    with pytest.raises(UsageError, match="no uncut graph"):
        _ = Chain(tiny.open_bundle(tmp_path / "bundle", source).files).uncut
