"""Run folders: checkpoints, metrics that rewind, and refusals."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from eecompile_training.runs import Run, open_run
from eecompile_training.settings import DataConfig, RunConfig

from eecompile.errors import UsageError

pytestmark = pytest.mark.torch


def config(path: Path, **changes: object) -> RunConfig:
    return RunConfig(model=path, output=path / "run", data=DataConfig(files=[path]), **changes)  # type: ignore[arg-type]


def opened(path: Path, *, resume: bool = False, data: str = "1", **changes: object) -> Run:
    chosen = config(path, **changes)
    return open_run(chosen.output, chosen, {"f": data}, seeds={"seed": chosen.seed}, resume=resume)


def test_the_last_two_checkpoints_are_kept_and_read_back(tmp_path: Path) -> None:
    run = opened(tmp_path)
    assert run.latest() == (0, None)
    for step in (5, 10, 100):
        run.save(step, {"w": torch.full((2,), float(step))})
    assert [p.name for p in sorted((run.path / "checkpoints").iterdir())] == ["step-00000010.pt", "step-00000100.pt"]
    step, state = run.latest()
    assert step == 100
    assert state["w"].tolist() == [100.0, 100.0]


def test_rewinding_forgets_later_lines_and_half_a_line(tmp_path: Path) -> None:
    run = opened(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": step / 2})
    with open(run.metrics, "a") as stream:
        stream.write('{"step": 2, "lo')
    run.rewind(2)
    assert run.metrics.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'


def test_a_run_is_gone_on_with_only_as_it_began(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to go on with"):
        opened(tmp_path, resume=True)
    opened(tmp_path)
    with pytest.raises(UsageError, match="a run here already"):
        opened(tmp_path)
    opened(tmp_path, resume=True)
    with pytest.raises(UsageError, match="steps: 200 before, 3 now"):
        opened(tmp_path, resume=True, steps=3)
    with pytest.raises(UsageError, match=r"data\.f: 1 before, 2 now"):
        opened(tmp_path, resume=True, data="2")
    (tmp_path / "run" / "student").mkdir()
    with pytest.raises(UsageError, match="finished"):
        opened(tmp_path, resume=True)


def test_another_process_writes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", writes=False)
    run.log(1, {})
    run.save(1, {})
    run.rewind(0)
    assert not run.path.exists()
