"""What graphs read and multiply: the shapes of a student say what the files of its bundle say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_t5
from hypothesis import given
from hypothesis import strategies as st

from eecompile.bench.work import LAYER_KERNELS, STORED, Matrix, Work
from eecompile.bench.work_bundle import works_from_bundle
from eecompile.bench.work_student import stored_weights, works_from_student
from eecompile.bundle.read import read_bundle
from eecompile.shapes import HeadShape, PredictorShape, RouterShape, weight_shapes
from eecompile.student.exits import ExitSpec
from eecompile.student.loops import Loops
from eecompile.student.student import open_student

HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=list(range(2, 60))),
]
EXITS = [
    ExitSpec(layer=1, adapter="affine", gates=["learned", "max_prob"], gate_units=8, head="thin"),
    ExitSpec(layer=2, adapter="layer", gates=["router"], router=RouterShape(choices=2, units=4), head="few"),
    ExitSpec(layer=3, adapter="mlp", gates=["predictor"], predictor=PredictorShape(head="few", units=8)),
]


def compared(folder: Path, source: Path, precision: str = "fp32", **options: Any) -> dict[str, Work]:
    """The works of a student, after a look at those of its bundle and at the files of weights."""
    bundle = tiny.bundle_at(folder / "bundle", source, precision=precision, **options)
    student, manifest = open_student(source), read_bundle(bundle, integrity="size").manifest
    cache = options.get("cache", "fp32")
    works = works_from_student(student, precision, cache, kv="propagate" in options.get("kv", ()))
    found = works_from_bundle(manifest, bundle)
    assert works.keys() == found.keys()
    for name, work in works.items():
        close = pytest.approx(work.weights, rel=0.01)  # per-head scales are stored once a head
        assert found[name] == replace(work, weights=close), name
    files = {f: info.bytes for f, info in manifest.files.items() if f.endswith(".weights") and "shared" not in f}
    gates = [
        shapes for e in manifest.exits for sizes in e.gate_sizes(32).values() for shapes in [weight_shapes(*sizes)]
    ]
    policy = 4 * sum(math.prod(shape) for shapes in gates for shape in shapes.values())
    assert stored_weights(student, precision, works) == pytest.approx(sum(files.values()) + policy, rel=0.02)
    return works


@pytest.mark.parametrize(
    ("precision", "cache"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "fp32"), ("int4", "int8")]
)
def test_a_student_with_every_kind_of_exit(tmp_path: Path, precision: str, cache: str) -> None:
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "source"), EXITS, heads=HEADS)
    works = compared(tmp_path, source, precision, cache=cache)
    assert set(works) == {"embed", *(f"segment_{i}" for i in range(4)), "exit_0", "exit_1", "exit_2", "head",
                          "head_thin", "head_few"}  # fmt: skip
    assert works["segment_1"].layers == works["exit_1"].layers == 1
    assert works["segment_1"].cached == 2 * 2 * {"fp32": 32, "fp16": 16, "int8": 12}[cache]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3", "gpt_neox", "olmo2", "phi3", "starcoder2"])
def test_other_families(tmp_path: Path, family: str) -> None:
    settings = next(made for made in tiny.variants().values() if made["model_type"] == family)
    compared(tmp_path, tiny.checkpoint(tmp_path / "source", settings))


def test_the_graphs_of_propagate_attend_to_nothing(tmp_path: Path) -> None:
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "source"), EXITS[:1], heads=HEADS)
    works = compared(tmp_path, source, kv=("catch_up", "propagate"))
    assert works["kv_1"].attended == works["kv_1"].cached == 0
    assert works["kv_1"].products == 3 * 32 * 2 * 16
    assert works["kv_1"].products < works["segment_1"].products


def test_a_block_that_repeats_is_stored_once(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    loops = Loops(prelude=1, block=2, loops=2, rank=4, projections=["q", "down"])
    tiny.add_exits(source, [ExitSpec(layer=3, gates=["max_prob"])], loops=loops)
    works = compared(tmp_path, source)
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 64
    assert works["segment_1"].products == 2 * (layer + 4 * (32 + 32) + 4 * (64 + 32))


def test_an_encoder_decoder(tmp_path: Path) -> None:
    """Its layers read the keys and values of the source; the encoder runs once and is only stored."""
    source = tiny.checkpoint(tmp_path / "source", tiny_t5.newer())
    works = compared(tmp_path, source)
    assert "encoder" not in works


def test_a_matrix_is_as_large_as_its_precision() -> None:
    assert {p: Matrix.of(64, 32, p).bytes / 2048 for p in STORED} == {
        "fp32": 4,
        "fp16": 2,
        "int8": 1.125,
        "w8a8": 1 + 4 / 64,
        "fp8": 1 + 4 / 64,
        "int4": 0.625,
    }


@given(st.integers(1, 200), st.integers(0, 5000))
def test_bytes_and_operations_of_a_pass(rows: int, length: int) -> None:
    work = Work.of([Matrix.of(8, 4, "fp32")], vectors=16, looked_up=6, cached=3, attended=5, layers=1)
    assert work.kernels == LAYER_KERNELS
    assert work.bytes(rows, length, 2.0) == 8 * 4 * 4 + 16 + rows * (6 + 2 * 2 * 4) + 3 * length
    assert work.operations(rows, length) == 2 * rows * (32 + 5 * length)
