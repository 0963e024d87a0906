"""Recursive students: which layer runs when, what unrolled weights are, and every way to refuse a schedule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoder
import tiny_t5
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eecompile.errors import UsageError
from eecompile.student.encoder_student import open_checkpoint
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.loops import Loops
from eecompile.student.student import Student, open_student

ALL = ["q", "k", "v", "o", "gate", "up", "down"]


def student(path: Path, loops: Loops, settings: tiny.Config | None = None, at: Any = ()) -> Student:
    """An open tiny student whose layers run as `loops` says."""
    return open_student(tiny.add_exits(tiny.checkpoint(path, settings), [], loops=loops), at)


def test_the_layers_in_the_order_that_they_run() -> None:
    loops = Loops(prelude=1, block=2, loops=3)
    assert loops.layers(5) == [0, 1, 2, 1, 2, 1, 2, 3, 4]
    assert [loops.loop(n) for n in range(9)] == [None, 0, 0, 1, 1, 2, 2, None, None]
    assert Loops(prelude=0, block=2, loops=2).layers(2) == [0, 1, 0, 1]


@given(prelude=st.integers(0, 4), block=st.integers(1, 4), loops=st.integers(2, 5), coda=st.integers(0, 4))
def test_own_layers_are_those_of_the_order(prelude: int, block: int, loops: int, coda: int) -> None:
    schedule, own = Loops(prelude=prelude, block=block, loops=loops), prelude + block + coda
    order = schedule.layers(own)
    assert [schedule.own_layer(n) for n in range(len(order) + 1)] == [*order, own]
    assert len(order) == prelude + block * loops + coda


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])  # a projection of its own, and a part of a fused one
def test_unrolled_weights_have_their_loops_low_rank_part(tmp_path: Path, family: str) -> None:
    roles: Any = ["q", "v", "down"]
    found = student(tmp_path / "c", Loops(prelude=1, block=2, loops=2, rank=3, projections=roles), tiny.config(family))
    factors, own = found.exits.store, found.own_store
    assert factors is not None
    assert (found.spec.layers, found.own_spec.layers) == (6, 4)
    names = found.spec.names
    for layer, (first, loop) in enumerate([(0, None), (1, 0), (2, 0), (1, 1), (2, 1), (3, None)]):
        for role in ("q", "k", "v", "o", "up", "down"):
            weight, source = (getattr(names, role).format(i=i) for i in (layer, first))
            expected = own.read(f"{source}.weight")
            if loop is not None and role in roles:
                a, b = (factors.read(f"loop.{loop}.{source}.{part}") for part in "ab")
                expected = expected + b @ a
            np.testing.assert_allclose(found.store.read(f"{weight}.weight"), expected, atol=1e-6)
        norm = names.attention_norm
        assert norm is not None
        np.testing.assert_array_equal(found.store.read(norm.format(i=layer)), own.read(norm.format(i=first)))


def test_a_layers_window_and_rotation_go_with_it(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    settings = tiny.config("olmo3", rope_theta=None, layer_types=kinds, rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 2000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    })  # fmt: skip
    found = student(tmp_path / "c", Loops(prelude=1, block=2, loops=2), settings)
    assert found.spec.windows == (20, None, 20, None, 20, None)
    assert found.spec.ropes == tuple(found.own_spec.ropes[i] for i in (0, 1, 2, 1, 2, 3))


def test_declared_exits_keep_the_schedule(tmp_path: Path) -> None:
    found = student(tmp_path / "c", Loops(prelude=1, block=2, loops=3, rank=2, projections=["q"]), at=[2, 7])
    assert found.loops is not None
    assert [e.layer for e in found.exits.schema.exits] == [2, 7]
    with pytest.raises(UsageError, match="exit 8 is not before the last of 8 layers"):
        open_student(tmp_path / "c", [8])


@pytest.mark.parametrize(
    "fields",
    [
        {"loops": 1}, {"block": 0}, {"prelude": -1}, {"rank": 2}, {"rank": 0, "projections": ["q"]},
        {"rank": 1, "projections": ["q", "q"]}, {"rank": 1, "projections": ["head"]}, {"coda": 1},
    ],
)  # fmt: skip
def test_schedules_that_say_nothing_sensible(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Loops.model_validate({"prelude": 1, "block": 2, "loops": 2, **fields})


@pytest.mark.parametrize(
    ("family", "loops", "message"),
    [
        ("llama", Loops(prelude=3, block=2, loops=2), "do not fit 4 layers"),
        ("llama", Loops(prelude=0, block=4, loops=256), None),
        ("gpt_neox", Loops(prelude=1, block=2, loops=2, rank=1, projections=["gate"]), "no gate projection"),
        ("gpt2", Loops(prelude=0, block=2, loops=2), "positions are learned"),
    ],
)
def test_schedules_that_do_not_fit_the_checkpoint(
    tmp_path: Path, family: str, loops: Loops, message: str | None
) -> None:
    settings = tiny.gpt2() if family == "gpt2" else tiny.config(family)
    plain = loops.model_copy(update={"rank": 0, "projections": []})
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "c", settings), [], loops=plain)
    (source / "early_exit.json").write_text(json.dumps({"exits": [], "schedule": loops.model_dump()}))
    if message is None:
        assert open_student(source).spec.layers == 1024
        return
    with pytest.raises(UsageError, match=message):
        open_student(source)


def test_factors_have_to_be_there_finite_and_of_the_rank(tmp_path: Path) -> None:
    loops = Loops(prelude=1, block=1, loops=2, rank=2, projections=["q", "down"])
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "c"), [], loops=loops)
    document = json.loads((source / "early_exit.json").read_text())

    def change(**fields: Any) -> None:
        schedule = {**document["schedule"], **fields}
        (source / "early_exit.json").write_text(json.dumps({**document, "schedule": schedule}))

    change(projections=["q", "k"])
    with pytest.raises(UsageError, match=r"lacks loop\.0\.model\.layers\.1\.self_attn\.k_proj\.a"):
        open_student(source)
    change(rank=3)
    with pytest.raises(UsageError, match=r"has shape \[2, 32\]"):
        open_student(source)
    (source / "early_exit.json").write_text(json.dumps({**document, "weights": None}))
    with pytest.raises(UsageError, match="no weights for it"):
        open_student(source)
    store = open_student(tiny.add_exits(source, [], loops=loops)).exits.store
    assert store is not None
    tensors = {name: store.read(name) for name in store.tensors}
    tensors["loop.1.model.layers.1.mlp.down_proj.b"][0, 0] = np.nan
    tiny.save_exits(source, tiny.EarlyExit(exits=[], schedule=loops), tensors)
    with pytest.raises(UsageError, match=r"loop\.1\.model\.layers\.1\.mlp\.down_proj\.b is not finite"):
        open_student(source)


def test_placement_is_a_matter_of_which_layer_was_last(tmp_path: Path) -> None:
    """An exit before layer 3 is one after layer 2, and the bundle knows it by the two layers that run."""
    exits = [
        ExitSpec(layer=2, placement="pre", gates=["max_prob"]),
        ExitSpec(layer=3, placement="pre", gates=["fixed"]),
    ]
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "c"), exits)
    opened = tiny.open_bundle(tmp_path / "b", source)
    assert [e.layer for e in opened.manifest.exits] == [1, 2]
    assert opened.manifest.caches == [1, 1, 2]
    same = [ExitSpec(layer=1, gates=["max_prob"]), ExitSpec(layer=2, gates=["fixed"])]
    other = tiny.open_bundle(tmp_path / "o", tiny.add_exits(source, same))
    bold = {1: {"max_prob": 0.0}, 2: None}
    assert tiny.tokens(opened, [1, 2], 9) == tiny.tokens(other, [1, 2], 9)
    stats = [o.session(mode="exact", thresholds=bold) for o in (opened, other)]
    drafted = [[(t.id, t.exit_layer) for t in s.generate([1, 2], max_new_tokens=9)] for s in stats]
    assert drafted[0] == drafted[1]


def test_an_exit_may_not_stand_before_everything_or_twice(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="embeddings alone"):
        ExitSpec(layer=1, placement="pre", gates=["fixed"])
    twice = [ExitSpec(layer=2, gates=["fixed"]), ExitSpec(layer=3, placement="pre", gates=["fixed"])]
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "c"), twice)
    with pytest.raises(UsageError, match="strictly increasing"):
        open_student(source)
    with pytest.raises(UsageError, match="exit 4 is not before the last of 4 layers"):
        open_student(tiny.add_exits(source, [ExitSpec(layer=5, placement="pre", gates=["fixed"])]))


@pytest.mark.parametrize("settings", [tiny_t5.t5(), tiny_encoder.config()], ids=["t5", "bert"])
@pytest.mark.parametrize("what", ["schedule", "pre", "mlp"])
def test_other_models_run_their_layers_as_they_come(tmp_path: Path, settings: Any, what: str) -> None:
    make = tiny_encoder.checkpoint if settings["model_type"] == "bert" else tiny.checkpoint
    source = make(tmp_path / "c", settings)
    exits = {"pre": [ExitSpec(layer=2, placement="pre", gates=["max_prob"])]}
    exits["mlp"] = [ExitSpec(layer=1, adapter="mlp", gates=["max_prob"])]
    loops = Loops(prelude=1, block=1, loops=2) if what == "schedule" else None
    save_exits(source, EarlyExit(exits=exits.get(what, []), schedule=loops), {})
    with pytest.raises(UsageError, match="with a decoder alone"):
        open_checkpoint(source)
