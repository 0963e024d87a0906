"""Sessions over encoder-decoders: all modes, precisions and limits; a row never depends on its pass or on padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile import contract as c
from eecompile.errors import ContextFull, UsageError
from eecompile.runtime import Sampling
from eecompile.runtime.source import encode_source, sequence
from eecompile.runtime.staircase import Staircase
from eecompile.shapes import Adaptive, Decay, HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec

EXITS = [1, 3]
FORCED: list[dict[int, Any]] = [
    {1: {"max_prob": 0.0}, 3: {"max_prob": 0.0}},
    {1: {"max_prob": 0.4}, 3: {"max_prob": 0.1}},
]


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
@pytest.mark.parametrize("name", ["t5", "t5-1.1"])
def test_exact_mode_is_full_mode(shelf: Any, name: str, precision: str) -> None:
    """Whatever is drafted, greedy and sampled."""
    opened = shelf.bundle(tiny_t5.variants()[name], EXITS, precision=precision, gain=3.0)
    drafted = rejected = 0
    for how in (None, Sampling(temperature=0.9, seed=3)):
        for source in tiny_t5.SOURCES:
            expected = tiny.tokens(opened, source, 40, how, stop=())
            for thresholds in FORCED:
                session = opened.session(mode="exact", thresholds=thresholds)
                generation = session.generate(source, max_new_tokens=40, sampling=how, stop=())
                assert [token.id for token in generation] == expected
                drafted, rejected = drafted + generation.stats.drafted, rejected + generation.stats.rejected
    assert drafted > 500
    assert 50 < rejected < drafted


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_a_row_has_the_same_bits_in_passes_of_every_width(shelf: Any, precision: str) -> None:
    opened = shelf.bundle(tiny_t5.t5(), EXITS, precision=precision)
    target = np.random.default_rng(1).integers(0, tiny.VOCAB, 90).tolist()
    for source in tiny_t5.SOURCES[::3]:
        whole = finished(opened, source, target, [90])
        for widths in ([1] * 90, [2] * 45, [9] * 10, [40, 1, 1, 48]):
            np.testing.assert_array_equal(finished(opened, source, target, widths), whole)


def finished(opened: Any, source: Sequence[int], target: Sequence[int], widths: Sequence[int]) -> Any:
    """The finished rows [R, D] of a target, run in passes of these widths."""
    stairs = Staircase(opened.manifest, opened.graphs)
    stairs.begin(list(source))
    rows, start = [], 0
    for width in widths:
        stairs.append(list(target[start : start + width]))
        rows.append(stairs.run_full().copy())
        start += width
    return np.concatenate(rows)


HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=list(range(0, tiny.VOCAB, 2))),
]
CRITERIA = [
    ExitSpec(layer=1, gates=["router", "predictor", "max_prob"], head="few", router=RouterShape(choices=3),
             predictor=PredictorShape(head="few", units=5), schedule=Adaptive(kind="adaptive")),
    ExitSpec(layer=3, gates=["saturation", "patience", "margin"], head="thin", schedule=Decay(kind="decay", tau=0.5)),
]  # fmt: skip
FIRES: dict[int, Any] = {
    1: {"router": 0.2, "predictor": 0.0, "max_prob": 0.0}, 3: {"saturation": -1.0, "patience": 0.0, "margin": 0.05},
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_exact_mode_with_every_criterion_and_small_heads(shelf: Any, precision: str) -> None:
    opened = shelf.bundle(tiny_t5.t5(), exits=CRITERIA, heads=HEADS, precision=precision, gain=0.35)
    drafted = rejected = 0
    for how in (None, Sampling(temperature=0.9, seed=3)):
        for source in tiny_t5.SOURCES[1:3]:
            generation = opened.session(mode="exact", thresholds=FIRES).generate(
                source, max_new_tokens=40, sampling=how, stop=()
            )
            assert [t.id for t in generation] == tiny.tokens(opened, source, 40, how, stop=())
            drafted, rejected = drafted + generation.stats.drafted, rejected + generation.stats.rejected
    assert drafted > 50
    assert rejected > 10


def test_sled_at_no_rate_is_full_mode(shelf: Any) -> None:
    opened, source = shelf.bundle(tiny_t5.t5(), EXITS), tiny_t5.SOURCES[2]
    sled = [tiny.tokens(opened, source, 20, Sampling(sled=True, sled_rate=r), stop=()) for r in (1e-9, 10.0)]
    assert sled[0] == tiny.tokens(opened, source, 20, stop=())
    assert sled[1] != sled[0]


def test_a_batch_of_one_slot_takes_sources_in_turn(shelf: Any) -> None:
    opened = shelf.bundle(tiny_t5.newer(), EXITS)
    batch = opened.batch(mode="exact", thresholds=FORCED[0])
    requests = [batch.add(source, max_new_tokens=9, stop=()) for source in tiny_t5.SOURCES * 2]
    while batch.busy:
        batch.step()
    assert [r.ids for r in requests] == [tiny.tokens(opened, s, 9, stop=()) for s in tiny_t5.SOURCES] * 2
    assert all(r.stats.drafted for r in requests)
    with pytest.raises(UsageError, match="a batch of 2") as refused:
        opened.batch(slots=2)
    assert not refused.value.mend


def test_no_bundle_has_more_slots(shelf: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="one sequence at a time"):
        tiny.bundle_at(tmp_path / "bundle", shelf.checkpoint(tiny_t5.t5()), EXITS, slots=2)
    assert not (tmp_path / "bundle").exists()


def test_padding_changes_nothing_but_rounding(shelf: Any) -> None:
    """What the encoder makes of a source is the same, whatever ids stand behind it."""
    opened = shelf.bundle(tiny_t5.t5(), EXITS)
    encoder, source = opened.graphs.encoder, tiny_t5.SOURCES[2]
    given_ = encode_source(encoder, opened.manifest.model, source)
    assert given_[c.SOURCE_LENGTH].tolist() == [17]
    session = encoder.session
    names = [o.name for o in session.get_outputs()]
    ids = np.array([source + [9] * 40], np.int64)
    longer = session.run(names, {c.TOKEN_IDS: ids, c.SOURCE_LENGTH: np.array([17], np.int64)})
    for name, values in zip(names, longer, strict=True):
        assert given_[name].shape == (1, 4, 32, 16)
        np.testing.assert_allclose(given_[name][:, :, :17], values[:, :, :17], atol=2e-5)


def test_a_session_forgets_the_source_before(shelf: Any) -> None:
    opened = shelf.bundle(tiny_t5.newer(), EXITS)
    session = opened.session(mode="exact", thresholds=FORCED[0])
    expected = [tiny.tokens(opened, source, 12, stop=()) for source in tiny_t5.SOURCES]
    assert len({tuple(ids) for ids in expected}) > 1
    for _ in range(2):
        for source, ids in zip(tiny_t5.SOURCES, expected, strict=True):
            assert [t.id for t in session.generate(source, max_new_tokens=12, stop=())] == ids


@settings(max_examples=15)
@given(st.data())
def test_any_source_and_any_thresholds(shelf: Any, data: st.DataObject) -> None:
    opened = shelf.bundle(tiny_t5.newer(), EXITS, precision="int4")
    source = data.draw(st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=70))
    bounds = st.one_of(st.none(), st.floats(0, 1).map(lambda t: {"max_prob": t}))
    thresholds = {layer: data.draw(bounds) for layer in EXITS}
    cap = data.draw(st.integers(1, 8))
    assert tiny.tokens(opened, source, 24, mode="exact", thresholds=thresholds, pending_cap=cap) == tiny.tokens(
        opened, source, 24
    )


def test_a_target_ends_where_the_model_ends_it(shelf: Any) -> None:
    opened = shelf.bundle(tiny_t5.newer(), EXITS)
    source = tiny_t5.SOURCES[3]
    free = tiny.tokens(opened, source, 20, stop=())
    end = free[5]
    generation = opened.session(mode="full").generate(source, max_new_tokens=20, stop=[end])
    assert [t.id for t in generation] == free[: free.index(end) + 1]
    assert generation.stats.stop_reason == "stop"
    assert generation.stats.prompt_tokens == len(source)


def test_source_and_target_have_a_context_each(shelf: Any) -> None:
    opened = shelf.bundle(tiny_t5.t5(), EXITS, context=40)
    session = opened.session()
    assert len(tiny.tokens(opened, [5] * 40, 40, stop=())) == 40
    assert len(list(session.generate([5] * 40, stop=()))) == 40
    with pytest.raises(ContextFull, match=r"41 tokens of source do not fit the context of 40"):
        session.generate([5] * 41)
    with pytest.raises(ContextFull, match=r"41 new tokens do not fit the context of 40"):
        session.generate([5], max_new_tokens=41)


@pytest.mark.parametrize("source", [[], [tiny.VOCAB], [-1], "text without a tokenizer"])
def test_bad_sources_are_refused(shelf: Any, source: Any) -> None:
    with pytest.raises(UsageError):
        shelf.bundle(tiny_t5.t5(), EXITS).session().generate(source)


def test_text_goes_through_the_tokenizer(tmp_path: Any) -> None:
    settings_ = tiny_t5.newer(vocab_size=tiny.TOKENIZER_IDS)
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "checkpoint", settings_))
    opened = tiny.open_bundle(tmp_path / "bundle", source, EXITS)
    assert opened.text is not None
    said = opened.session().generate("the source", max_new_tokens=8, stop=())
    assert [t.id for t in said] == tiny.tokens(opened, opened.text.encode("the source"), 8, stop=())


def test_sequences_of_either_kind(shelf: Any) -> None:
    decoder, both = shelf.bundle(tiny.config(), EXITS), shelf.bundle(tiny_t5.variants()["t5-1.1-start"], EXITS)
    assert sequence(decoder.manifest, [7, 8], [9]) == ([7, 8, 9], None)
    assert sequence(both.manifest, [7, 8], [9]) == ([5, 9], [7, 8])
