"""Recursive models in bundles: against transformers with the layers copied, exact mode, the uncut graph, and memory."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.bench.uncut import UncutModel
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.trace import Tracer
from eecompile.segments.plan import cuts, plan_segments
from eecompile.student.loops import Loops
from eecompile.student.student import open_student

IDS = np.random.default_rng(2).integers(0, tiny.VOCAB, 50).tolist()
ALL: list[Any] = ["q", "k", "v", "o", "gate", "up", "down"]
GAIN = 0.35
SOME: list[Any] = [[], ["q", "v"], ["k"], ["o", "up"], ["gate", "down"], ALL]


def loops(prelude: int, block: int, times: int, projections: Any = (), rank: int = 3) -> Loops:
    """A schedule with LoRA of `rank` where there are projections to have it."""
    return Loops(prelude=prelude, block=block, loops=times, rank=rank if projections else 0, projections=projections)


CASES = {
    "prelude-block-coda": (tiny.config(), loops(1, 2, 3, ALL), [3, 5]),
    "block-alone": (tiny.config(num_hidden_layers=2), loops(0, 2, 3, ALL), [2, 3]),
    "panels": (tiny.config(num_hidden_layers=2), loops(0, 1, 2, ALL, rank=20), [2]),
    "no-lora": (tiny.config(head_dim=16), loops(1, 2, 2), [1, 4]),
    "fused": (tiny.config(head_dim=16, attention_bias=True, mlp_bias=True), loops(0, 3, 2, ["q", "v", "up"]), [3]),
    "window": (tiny.config("mistral", sliding_window=16), loops(2, 1, 4, ["k", "o"]), [3, 4, 5]),
    "qwen3": (tiny.config("qwen3", head_dim=16), loops(1, 1, 2, ["v", "gate", "down"]), [2]),
}  # fmt: skip


def test_pieces_are_cut_at_the_block_and_at_the_exits() -> None:
    plan = plan_segments(5, [2, 3, 5], loops(1, 2, 2))
    assert plan.pieces == [range(1), range(1, 2), range(2, 3), range(3, 5)]
    assert [(v.piece, v.first, v.loop, v.exit) for v in plan.visits] == [
        (0, 0, None, None), (1, 1, 0, 0), (2, 2, 0, 1), (1, 3, 1, None), (2, 4, 1, 2), (3, 5, None, None),
    ]  # fmt: skip
    ends = plan_segments(2, [], loops(0, 2, 3))
    assert (ends.pieces, [v.piece for v in ends.visits]) == ([range(2), range(2, 2)], [0, 0, 0, 1])
    plain = plan_segments(4, [1, 3])
    assert (plain.pieces, [v.exit for v in plain.visits]) == (cuts(4, [1, 3]), [0, 1, None])


@given(
    prelude=st.integers(0, 3), block=st.integers(1, 3), times=st.integers(2, 4), coda=st.integers(0, 2), data=st.data()
)
def test_every_plan_runs_the_layers_in_order(prelude: int, block: int, times: int, coda: int, data: Any) -> None:
    schedule, own = loops(prelude, block, times), prelude + block + coda
    order = schedule.layers(own)
    exits = sorted(data.draw(st.sets(st.integers(1, max(1, len(order) - 1)), max_size=4)))
    exits = [n for n in exits if n < len(order)]
    plan = plan_segments(own, exits, schedule)
    ran: list[int] = []
    for visit in plan.visits:
        assert visit.first == len(ran)
        ran += plan.pieces[visit.piece]
        if visit.exit is not None:
            assert exits[visit.exit] == len(ran)
    assert ran == order
    assert [v.exit for v in plan.visits if v.exit is not None] == list(range(len(exits)))
    assert Counter(v.piece for v in plan.visits)[plan.visits[-1].piece] == 1


def untied(source: Path, target: Path) -> Path:
    """A plain checkpoint with a layer for each time that one runs, its loop's LoRA in it: made of the raw tensors."""
    student = open_student(source)
    assert student.loops is not None
    order, own = student.loops.layers(student.own_spec.layers), student.own_store
    tensors = {n: own.read(n) for n in own.tensors if ".layers." not in n}
    for layer, first in enumerate(order):
        for name in own.tensors:
            if f".layers.{first}." not in name:
                continue
            value, factors = own.read(name), student.exits.store
            pair = f"loop.{student.loops.loop(layer)}.{name.removesuffix('.weight')}"
            if factors is not None and f"{pair}.a" in factors.tensors:
                value = value + factors.read(f"{pair}.b") @ factors.read(f"{pair}.a")
            tensors[name.replace(f".layers.{first}.", f".layers.{layer}.")] = value
    settings = tiny.json.loads((source / "config.json").read_text())
    return tiny.checkpoint(target, {**settings, "num_hidden_layers": len(order)}, tensors)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_untied_model(shelf: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    config, schedule, at = CASES[name]
    opened = shelf.bundle(config, at, loops=schedule)
    model = tiny.hugging_face(untied(shelf.checkpoint(config, loops=schedule), tmp_path / "untied"))
    states, _ = tiny.hugging_face_states(model, IDS)
    trace = Tracer(opened, boundaries=True).trace(IDS)
    assert trace.boundaries is not None
    assert opened.manifest.model.layers == len(states) - 1
    for rows, layer in zip(trace.boundaries, [*at, len(states) - 1], strict=True):
        assert np.abs(rows - states[layer]).max() < 1e-4 * np.abs(states[layer]).max()
    assert tiny.tokens(opened, IDS[:9], 16) == tiny.hugging_face_tokens(model, IDS[:9], 16)


def test_every_factor_counts(shelf: Any) -> None:
    """Each loop's LoRA is added in its own loop: whichever pair is left out, the finished rows are others."""
    config, schedule, at = CASES["prelude-block-coda"]
    opened = shelf.bundle(config, at, loops=schedule)
    whole, factors = finished(opened), opened.graphs.factors
    names = [(k, name) for k, arrays in enumerate(factors) for name in arrays if "_b_" in name]
    assert len(names) == 3 * 2 * len(ALL)  # loops, layers, projections
    for k, name in names:
        fewer = [{**arrays, name: 0 * arrays[name]} if step == k else arrays for step, arrays in enumerate(factors)]
        rows = finished(replace(opened, graphs=replace(opened.graphs, factors=fewer)))
        assert np.abs(rows - whole).max() > 1e-3, (k, name)


def finished(opened: Bundle) -> Any:
    """The finished rows of IDS."""
    return (Tracer(opened, boundaries=True).trace(IDS).boundaries or [])[-1]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_exact_is_full(shelf: Any, precision: str) -> None:
    seen: Counter[str] = Counter()

    @given(
        prelude=st.integers(0, 1), block=st.integers(1, 2), times=st.integers(2, 3), coda=st.integers(0, 1),
        projections=st.sampled_from(SOME), head_dim=st.sampled_from([8, 16]), data=st.data(),
    )  # fmt: skip
    @settings(max_examples=30)
    def check(
        prelude: int, block: int, times: int, coda: int, projections: Any, head_dim: int, data: Any
    ) -> None:  # fmt: skip
        config = tiny.config(num_hidden_layers=prelude + block + coda, head_dim=head_dim)
        layers = prelude + block * times + coda
        at = sorted(data.draw(st.sets(st.integers(1, layers - 1), min_size=1, max_size=3)))
        schedule = loops(prelude, block, times, projections)
        opened = shelf.bundle(config, at, loops=schedule, precision=precision, gain=GAIN)
        for _ in range(3):
            prompt = data.draw(st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=60))
            how = data.draw(st.sampled_from([Sampling(), Sampling(temperature=0.8, seed=3)]))
            bounds = {n: {"max_prob": data.draw(st.sampled_from([0.0, 0.02, 0.1]))} for n in at}
            full = tiny.tokens(opened, prompt, 24, how)
            session = opened.session(mode="exact", thresholds=bounds, pending_cap=data.draw(st.integers(1, 8)))
            exact = session.generate(prompt, max_new_tokens=24, sampling=how)
            assert [t.id for t in exact] == full
            seen.update(drafted=exact.stats.drafted, rejected=exact.stats.rejected)

    check()
    assert seen["drafted"] - seen["rejected"] > 100, seen
    assert seen["rejected"] > 100, seen


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("name", ["prelude-block-coda", "fused"])
def test_a_row_does_not_depend_on_its_pass(shelf: Any, name: str, precision: str) -> None:
    """Factors are inputs, which ONNX Runtime multiplies a lone row by in another way than several."""
    config, schedule, at = CASES[name]
    opened = shelf.bundle(config, at, loops=schedule, precision=precision)
    whole = finished(opened)
    stairs = Staircase(opened.manifest, opened.graphs)
    rows = []
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 6), (6, 30), (30, 32), (32, 50)):
        stairs.append(IDS[start:stop])
        rows.append(stairs.run_full().copy())
    np.testing.assert_array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("rank", [16, 32, 40, 64])
def test_nor_does_it_where_sums_are_long_and_ranks_wide(shelf: Any, rank: int) -> None:
    """How ONNX Runtime cuts long sums goes by the columns of a thread, and those by the rows of the pass."""
    config = tiny.config(hidden_size=640, intermediate_size=1536, num_hidden_layers=1, max_position_embeddings=160)
    opened = shelf.bundle(config, loops=loops(0, 1, 2, ALL, rank=rank))
    ids = np.random.default_rng(4).integers(0, tiny.VOCAB, 128).tolist()

    def rows(*widths: int) -> Any:
        stairs, found = Staircase(opened.manifest, opened.graphs), []
        for width in widths:
            stairs.append(ids[stairs.length : stairs.length + width])
            found.append(stairs.run_full().copy())
        return np.concatenate(found)

    whole = rows(128)
    for widths in ([1] * 20, [2] * 10, [3] * 10, [5, 9, 40], [70, 1, 9]):
        np.testing.assert_array_equal(rows(*widths), whole[: sum(widths)])


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", CASES)
def test_the_chain_is_the_uncut_graph(shelf: Any, name: str, precision: str) -> None:
    config, schedule, at = CASES[name]
    opened = shelf.bundle(config, at, loops=schedule, precision=precision)
    for prompt in (IDS[:5], IDS):
        assert UncutModel(opened).generate(prompt, 24)[0] == tiny.tokens(opened, prompt, 24)


def test_weights_are_stored_and_loaded_once(shelf: Any) -> None:
    """Five loops take the bytes and the engines of two, but for their LoRA and their caches."""
    config = tiny.config()
    few, many, plain = (
        shelf.bundle(config, [3], loops=schedule, context=64)
        for schedule in (loops(1, 2, 2, ALL), loops(1, 2, 5, ALL), None)
    )
    assert [len(b.graphs.segments) for b in (few, many, plain)] == [3, 3, 2]
    assert [len(b.manifest.schedule) for b in (few, many, plain)] == [4, 7, 2]
    assert [b.manifest.model.layers for b in (few, many, plain)] == [6, 12, 4]
    assert len({id(many.graphs.segments[s.segment]) for s in many.manifest.schedule}) == 3

    def stored(opened: Bundle, kind: str) -> int:
        files = {n: f for n, f in opened.manifest.files.items() if n.endswith(".weights")}
        return sum(f.bytes for n, f in files.items() if ("factors" in n) == (kind == "factors"))

    assert stored(few, "weights") == stored(many, "weights")
    assert abs(stored(many, "weights") - stored(plain, "weights")) < 64 * 60  # alignment
    assert stored(many, "factors") * 2 == stored(few, "factors") * 5
    own = open_student(shelf.checkpoint(config, loops=loops(1, 2, 5, ALL)))
    assert own.loops is not None
    factors = sum(int(np.prod(s)) for s in own.loops.factor_shapes(own.own_spec).values())
    assert stored(many, "factors") == 4 * factors
    assert many.manifest.model.parameters == plain.manifest.model.parameters + factors
