"""Records of engines: what was built is compared with what is here before anything is deserialised."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eecompile.engines.records import (
    RECORD,
    EngineFile,
    EngineMismatch,
    EngineOptions,
    EngineRecord,
    Machine,
    check,
    check_engines,
    checked_engine,
    read_record,
    write_record,
)
from eecompile.errors import IntegrityError, MissingBackend

CORE, GRAPH, PLUGIN = "c" * 64, "9" * 64, "b" * 64
HERE = Machine(sm=87, tensorrt="10.3.0", cuda="12.6", plugin=PLUGIN)
CONTENT = b"an engine"


def record(**changes: Any) -> EngineRecord:
    head = EngineFile(
        file="head.plan", onnx=GRAPH, bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(),
        profiles=["decode"], layers={"PLUGIN_V3": 1}, seconds=1.5,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "core": CORE, "target": "jetson-orin", "backend": "tensorrt", "sm": [87], "tensorrt": "10.3.0",
        "cuda": "12.6", "plugin": PLUGIN, "options": EngineOptions(compute="float16"), "engines": {"head": head},
    }  # fmt: skip
    return EngineRecord(**{**fields, **changes})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    assert read_record(tmp_path) == record()
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


def test_engines_of_this_machine_pass() -> None:
    check(record(), HERE, CORE, {"head": GRAPH}, where=Path("engines"))
    check(record(sm=[80, 87]), replace(HERE, cuda="12.8"), CORE, {"head": GRAPH}, where=Path("engines"))
    check(record(plugin=None), replace(HERE, plugin=None), CORE, {"head": GRAPH}, where=Path("engines"))
    check(record(), replace(HERE, tensorrt="10.3.0.26"), CORE, {"head": GRAPH}, where=Path("engines"))
    check(record(cuda=None), replace(HERE, cuda=None), CORE, {"head": GRAPH}, where=Path("engines"))


@pytest.mark.parametrize(
    ("machine", "both"),
    [
        (replace(HERE, sm=86), ["compute capability", "87", "86"]),
        (replace(HERE, tensorrt="10.3.1"), ["TensorRT", "10.3.0", "10.3.1"]),
        (replace(HERE, cuda="12.4"), ["CUDA", "12.6", "12.4"]),
        (replace(HERE, cuda="13.0"), ["CUDA", "12.6", "13.0"]),
        (replace(HERE, cuda=None), ["CUDA", "12.6", "None"]),
        (replace(HERE, plugin="d" * 64), ["plugin", PLUGIN, "d" * 64]),
        (replace(HERE, plugin=None), ["plugin", PLUGIN, "none"]),
    ],
)
def test_another_machine_is_refused_naming_both_values(machine: Machine, both: list[str]) -> None:
    with pytest.raises(EngineMismatch) as refused:
        check(record(), machine, CORE, {"head": GRAPH}, where=Path("engines/jetson-orin"))
    assert refused.value.exit_status == 4
    assert all(value in str(refused.value) for value in [*both, "engines/jetson-orin", "eecompile engines"])


@pytest.mark.parametrize(("core", "graph"), [("d" * 64, GRAPH), (CORE, "8" * 64)])
def test_another_bundle_is_refused_naming_both_values(core: str, graph: str) -> None:
    with pytest.raises(EngineMismatch) as refused:
        check(record(), HERE, core, {"head": graph}, where=Path("engines"))
    wrong = (CORE, core) if core != CORE else (GRAPH, graph)
    assert all(value in str(refused.value) for value in wrong)


def test_engines_that_are_not_built_are_no_fault_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(MissingBackend, match="no engines"):
        read_record(tmp_path)
    with pytest.raises(MissingBackend, match="1 of 2 engines are not built: segment_0"):
        check(record(), HERE, CORE, {"head": GRAPH, "segment_0": GRAPH}, where=tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "eecompile-engines"}', "x" * 10, '{"unknown": 1}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(IntegrityError, match="record of engines"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd.plan", "/head.plan", "a/b.plan", ".head.plan", "head.onnx"])
def test_an_engine_lies_beside_its_record(tmp_path: Path, name: str) -> None:
    text = record().model_dump_json().replace("head.plan", name)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(IntegrityError, match="file"):
        read_record(tmp_path)


def test_an_engine_is_the_one_that_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "head.plan"
    with pytest.raises(IntegrityError, match="missing"):
        checked_engine(tmp_path, record(), "head")
    path.write_bytes(CONTENT)
    assert checked_engine(tmp_path, record(), "head") == path
    path.write_bytes(CONTENT[::-1])
    assert checked_engine(tmp_path, record(), "head", hashed=False) == path
    with pytest.raises(IntegrityError, match="SHA-256"):
        checked_engine(tmp_path, record(), "head")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError, match="8 bytes instead of 9"):
        checked_engine(tmp_path, record(), "head", hashed=False)
    path.unlink()
    (tmp_path / "other").write_bytes(CONTENT)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(IntegrityError, match="missing"):
        checked_engine(tmp_path, record(), "head")


def test_every_engine_of_a_bundle_is_held_against_its_record(tmp_path: Path) -> None:
    check_engines(tmp_path)  # none
    folder = tmp_path / "engines" / "jetson-orin"
    folder.mkdir(parents=True)
    (folder / "head.plan").write_bytes(CONTENT)
    write_record(folder, record())
    check_engines(tmp_path)
    (folder / "head.plan").write_bytes(CONTENT[::-1])
    with pytest.raises(IntegrityError, match="SHA-256"):
        check_engines(tmp_path)
    (folder / RECORD).write_text("{}")
    with pytest.raises(IntegrityError):
        check_engines(tmp_path)
