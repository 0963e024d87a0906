"""`make gpu-test`: without a GPU it says so and ends with status 3; with one it runs its steps and says what held."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eecompile.engines.cuda import Gpu
from eecompile.errors import MissingBackend
from eecompile.target import load_target

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import gpu_test
from gpu_test import Machine, as_text, check_steps, run_steps, target_of

HERE = Machine(Gpu("Double", 87, "13.2", "13.2", 1 << 33), "10.16.2", "0", "Linux aarch64", "3.12", {"onnx": "1.19"})
IDS = [4, 5, 6]


def answers(words: Sequence[str]) -> tuple[int, str]:
    """What commands say that all end well."""
    mode = {"tokens_per_second": 90.0, "speedup": 1.5, "agreement": 1.0}
    captured = {"name": "captured", "passed": True, "figures": {"uncaptured": 0}, "detail": "uncaptured 0; all"}
    said: dict[str, Any] = {"token_ids": IDS, "modes": {"exact": mode}, "checks": [captured]}
    return 0, json.dumps(said)


def steps(run: Any = answers) -> list[gpu_test.Step]:
    return run_steps(Path("model"), load_target("jetson-orin"), Path("out"), ["--precision", "fp16"], run)


def test_without_a_gpu_it_says_so_and_ends_with_3(tmp_path: Path) -> None:
    code = "import sys; sys.modules['cuda.bindings.runtime'] = None; import gpu_test; gpu_test.main()"
    command = [sys.executable, "-c", code, "model", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(gpu_test.__file__).parent, check=False)
    assert done.returncode == 3
    assert "no GPU test: the CUDA back ends need the Python package cuda-bindings" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_target_is_the_machines() -> None:
    assert target_of(HERE).name == "jetson-orin"
    assert target_of(replace(HERE, tensorrt="10.3.0")).name == "jetson-orin-jp6"
    assert target_of(replace(HERE, gpu=replace(HERE.gpu, sm=90))).name == "h100"
    with pytest.raises(MissingBackend, match="no target has compute capability 61"):
        target_of(replace(HERE, gpu=replace(HERE.gpu, sm=61)))


def test_all_that_holds_passes_and_is_told() -> None:
    ran = steps()
    checks = check_steps(ran)
    assert [s.name for s in ran][:3] == ["build", "engines", "verify"]
    assert all(checks.values())
    assert checks["exact is full on the GPU"]
    assert checks["each pass that repeats is captured"]
    text = as_text(HERE, load_target("jetson-orin"), ran, checks)
    for part in (
        "Double, SM 87, 8.6 GB; driver CUDA 13.2",
        "TensorRT 10.16.2",
        "pass  verify",
        "captured: uncaptured 0; all",
        "exact: 90.0 tokens/s, 1.50 x",
    ):
        assert part in text


def test_the_commands_are_the_programs_own() -> None:
    """Each takes the options that it is given: click knows."""
    from eecompile.cli import main

    for step in steps():
        command = main.commands[step.command[1]]
        command.make_context(step.command[1], list(step.command[2:]))


def test_what_fails_is_told() -> None:
    def exact_differs(words: Sequence[str]) -> tuple[int, str]:
        status, text = answers(words)
        return (status, text.replace("6", "7")) if "exact" in words and "tensorrt" in words else (status, text)

    def verify_fails(words: Sequence[str]) -> tuple[int, str]:
        return (1, "the rows differ") if words[0] == "verify" else answers(words)

    def captures_nothing(words: Sequence[str]) -> tuple[int, str]:
        status, text = answers(words)
        return status, text.replace('"uncaptured": 0', '"uncaptured": 2').replace("0; all", "2; head.onnx: no")

    assert not check_steps(steps(exact_differs))["exact is full on the GPU"]
    ran = steps(captures_nothing)
    assert not check_steps(ran)["each pass that repeats is captured"]
    assert "captured: uncaptured 2; head.onnx: no" in as_text(HERE, load_target("jetson-orin"), ran, {})
    ran = steps(verify_fails)
    assert not check_steps(ran)["verify"]
    assert "verify: the rows differ" in as_text(HERE, load_target("jetson-orin"), ran, check_steps(ran))


def test_nothing_runs_on_engines_that_are_not_there() -> None:
    ran = steps(lambda words: (3, "no TensorRT") if words[0] == "engines" else answers(words))
    assert [s.name for s in ran] == ["build", "engines"]
    assert not check_steps(ran)["every step ran"]
