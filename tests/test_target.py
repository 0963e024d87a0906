"""Targets: those that come with eecompile are valid, files are found by name or path, and faults name the file."""

from pathlib import Path
from typing import Any

import pytest

from eecompile.errors import UsageError
from eecompile.target import FOLDER, Target, load_target, target_names, tomllib

JETSON: dict[str, Any] = {"backend": "tensorrt", "built": "device", "sm": [87]}
CPU = tomllib.loads((FOLDER / "cpu.toml").read_text())


def written(path: Path, changes: dict[str, Any]) -> str:
    """cpu.toml under a name of its own, with changes (None removes), as the name of a file."""
    fields = {k: v for k, v in {**CPU, "name": "mine", **changes}.items() if v is not None}
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in fields.items()
    ]
    path.write_text("\n".join(lines).replace("'", '"'))
    return str(path)


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_valid_and_sourced(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.precision in target.precisions
    assert target.description
    assert target.sources


def test_cpu_is_there_and_takes_everything() -> None:
    assert "cpu" in target_names()
    target = load_target("cpu")
    assert target.precisions == ["fp32", "fp16", "int8", "int4"]
    assert target.backend == "onnxruntime"


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.toml", {"name": "mine", "context": 99})
    assert load_target(path) == Target.model_validate({**CPU, "name": "mine", "context": 99})


@pytest.mark.parametrize("name", ["jetson-nano-9000", "", "../targets/cpu", "nowhere.toml", "/", "cpu\x00"])
def test_a_name_that_is_none_lists_the_names(name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no target(.|\n)*targets: .*cpu.*path to a \.toml file"):
        load_target(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None}, {"name": "../../escaped"}, {"name": ".."}, {"name": "/tmp/x"},
        {"surprise": 1}, {"precisions": []}, {"precisions": ["fp8"]}, {"precision": "fp8"},
        {"context": 0}, {"pending": 0}, {"pending": 64}, {"opset": 12}, {"bandwidth": -1.0}, {"batch": "one"},
        {"precisions": ["fp16"], "precision": "fp32"}, {"context": 1 << 40}, {"batch": 1 << 20}, {"batch": True},
        {"memory": True}, {"memory": 8}, {"memory": 1 << 60}, {"memory": 8e9}, {"bandwidth": 1.0},
        {"bandwidth": 204.8}, {"bandwidth": 1e30}, {"bandwidth": True}, {"attained": 1e-9}, {"kernel": 0.5},
        {"unified": 1}, {"opset": 24.0},
    ],
)  # fmt: skip
def test_fields_out_of_range(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path / "bad.toml", changes)
    with pytest.raises(UsageError, match="not a valid target") as caught:
        load_target(path)
    assert caught.value.where == path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"context": 0}, "context: Input should be greater than or equal to 1"),
        ({"pending": 64, "opset": 12}, "opset: .*; pending: "),
        ({"built": "device"}, "onnxruntime is not built device"),
        ({"backend": "tensorrt"}, "tensorrt is not built anywhere"),
        ({"backend": "tensorrt", "built": "device"}, "tensorrt needs sm and tensorrt"),
        ({"backend": "tensorrt", "built": "device", "sm": [87]}, "tensorrt needs sm and tensorrt"),
        ({"tensorrt": "10.9", "tensorrt_below": "10.9"}, "tensorrt_below 10.9 is not above tensorrt 10.9"),
        ({"dialect": "classic", "opset": 21}, "the classic dialect stops at opset 20, and opset is 21"),
        ({"tensorrt": "ten"}, "tensorrt: String should match"),
        ({"attained": 1.5}, "attained: "), ({"launch": -1e-6}, "launch: "), ({"kernel": 2.0}, "kernel: "),
        ({"memory": True}, "memory: Input should be a valid integer"),
        ({"memory": 8}, r"memory: 8 bytes is less than 1e\+08; 0 says that it is not known"),
        ({"bandwidth": 1.0}, r"bandwidth: 1 bytes/s is less than 1e\+08"),
        ({"sm": [87, 89, 87]}, "sm has an entry twice: 87, 89, 87"),
        ({"precisions": ["fp32", "fp32"]}, "precisions has an entry twice: fp32, fp32"),
        ({**JETSON, "tensorrt": "8.6"}, r"tensorrt 8\.6 is older than 10\.3, the first that builds engines"),
        ({"name": "l4"}, "l4 is the name of one that comes with eecompile, and this is another"),
    ],
)  # fmt: skip
def test_faults_name_the_field_and_the_reason(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=f"not a valid target: (.*; )?{why}") as caught:
        load_target(written(tmp_path / "bad.toml", changes))
    assert "For further information" not in caught.value.what
    assert caught.value.mend


def test_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.toml", {"tensorrt": "10.9", "tensorrt_below": "10.10"})
    assert load_target(path).tensorrt_below == "10.10"


def test_nothing_known_is_no_fault(tmp_path: Path) -> None:
    target = load_target(written(tmp_path / "mine.toml", {"memory": 0, "bandwidth": 0.0}))
    assert (target.memory, target.bandwidth) == (0, 0)


def test_a_target_that_comes_with_eecompile_by_its_path(tmp_path: Path) -> None:
    assert load_target(str(FOLDER / "cpu.toml")) == load_target("cpu")
    with pytest.raises(UsageError, match="cpu is the name of one") as caught:
        load_target(written(tmp_path / "mine.toml", {**JETSON, "name": "cpu", "tensorrt": "10.3"}))
    assert "a name of its own" in caught.value.mend


@pytest.mark.parametrize("rate", [0.0, -1.0, 67.0, 1e30, float("nan")])
def test_rates_that_nothing_has(rate: float) -> None:
    with pytest.raises(ValueError, match=r"flops\.fp16"):
        Target.model_validate({**CPU, "flops": {"fp16": rate}})


def test_devices_have_what_a_prediction_needs() -> None:
    """All but the two that stand for machines of many kinds."""
    for target in (load_target(name) for name in target_names()):
        known = target.name not in ("cpu", "rtx")
        assert bool(target.memory and target.bandwidth) == known
        assert {"fp32", "fp16"} <= set(target.flops) or not known


def test_a_context_leaves_room_for_the_model() -> None:
    """The keys and values of one sequence of an 8B-class model (128 KiB a token) take at most a quarter of memory."""
    for target in (load_target(name) for name in target_names()):
        assert not target.memory or target.context * (128 << 10) <= target.memory / 4


@pytest.mark.parametrize("content", [b"name = ", b"\xff", b"[[["])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"not a valid target(.|\n)*mend: a target is a TOML file in UTF-8"):
        load_target(str(tmp_path / "bad.toml"))


def test_a_directory_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="there is no target"):
        load_target(str(tmp_path / "folder.toml"))
