"""Build plans: what is written is read, what does not follow the schema is refused, and profiles cover every pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eecompile.engines.plan import BuildPlan, read_plan, write_plan
from eecompile.engines.profiles import PassSizes, profile_shapes
from eecompile.errors import IntegrityError
from eecompile.schema import TensorInfo

SIZES = PassSizes(slots=4, pending_cap=8, minimum_rows=2, prefill_rows=128, length=320)
INPUTS = [
    TensorInfo(name="hidden", dtype="float32", shape=["B", "R", 32]),
    TensorInfo(name="write_index", dtype="int64", shape=["B"]),
    TensorInfo(name="key_cache_0", dtype="float16", shape=["B", 2, "T", 8]),
]


def fields(**changes: Any) -> dict[str, Any]:
    """A plan of one graph."""
    profiles = [p.model_dump() for p in profile_shapes(INPUTS, SIZES)]
    graph = {
        "name": "segment_0", "path": "segments/device_segment_0.onnx", "sha256": "a" * 64, "profiles": profiles,
        "weights": ["segments/segment_0.weights"], "plugin": False, "flags": ["strongly_typed"],
        "in_place": {"key_cache_0": "key_cache_0_out"},
    }  # fmt: skip
    return {
        "target": "orin", "backend": "tensorrt", "dialect": "modern", "opset": 24, "compute": "float16",
        "cache": "fp16", "precision": "int4", "context": 256, "slots": 4, "length": 320, "sm": [87],
        "tensorrt": "10.16", "tensorrt_below": "11.0", "cuda": "13.2", "plugin": "preferred", "graphs": [graph],
        **changes,
    }  # fmt: skip


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = BuildPlan.model_validate(fields())
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.graph("segment_0").profiles[1].name == "prefill"


def test_profiles_cover_what_passes_may_be() -> None:
    decode, prefill = profile_shapes(INPUTS, SIZES)
    assert (decode.name, prefill.name) == ("decode", "prefill")
    hidden, cache = decode.shapes["hidden"], decode.shapes["key_cache_0"]
    assert (hidden.min, hidden.opt, hidden.max) == ([1, 1, 32], [4, 2, 32], [4, 9, 32])
    assert (cache.min, cache.max) == ([1, 2, 320, 8], [4, 2, 320, 8])
    assert prefill.shapes["hidden"].max == prefill.shapes["hidden"].opt == [4, 128, 32]
    assert prefill.shapes["write_index"].min == [1]
    (flat, wide) = profile_shapes([TensorInfo(name="hidden", dtype="float32", shape=["N", 32])], SIZES)
    assert flat.shapes["hidden"].min == [1, 32]  # an exit is asked for one row, whatever the minimum
    assert flat.shapes["hidden"].max == [36, 32]  # every pending row of every slot
    assert wide.shapes["hidden"].max == [128, 32]
    previous = TensorInfo(name="previous", dtype="float32", shape=["N", 32])
    for profile in profile_shapes([*INPUTS, previous], SIZES):
        hidden, flat = profile.shapes["hidden"], profile.shapes["previous"]
        for whole, rows in ((hidden.min, flat.min), (hidden.opt, flat.opt), (hidden.max, flat.max)):
            assert rows == [whole[0] * whole[1], 32]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "key": (lambda p: p.update(extra=1), "Extra inputs"),
    "compute": (lambda p: p.update(compute="int4"), "compute"),
    "sm": (lambda p: p.update(sm=[3]), "sm.0"),
    "hash": (lambda p: p["graphs"][0].update(sha256="A" * 64), "sha256"),
    "order": (lambda p: p["graphs"][0]["profiles"][0]["shapes"]["hidden"].update(max=[0, 9, 32]), "not min <= opt"),
    "rank": (lambda p: p["graphs"][0]["profiles"][0]["shapes"]["hidden"].update(max=[9]), "differ in rank"),
    "inputs": (lambda p: p["graphs"][0]["profiles"][0]["shapes"].pop("hidden"), "name different inputs"),
    "profiles": (lambda p: p["graphs"][0].update(profiles=p["graphs"][0]["profiles"][:1] * 2), "a profile twice"),
    "names": (lambda p: p.update(graphs=p["graphs"] * 2), "one name"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    import json

    edit, message = FAULTS[name]
    document = fields(format="eecompile-build-plan", version=1)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    read_plan(tmp_path / "plan.json")
    edit(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=message):
        read_plan(tmp_path / "plan.json")


def test_a_missing_or_huge_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b" " * (17 << 20))
    with pytest.raises(IntegrityError, match="more than"):
        read_plan(tmp_path / "plan.json")
