"""Training commands in processes of their own: killed, or two at work together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distilling import torchrun
from eecompile_training.runs import Run

PROGRAM = """import sys
from pathlib import Path
import torch
from eecompile_training.{module} import train_file
torch.set_num_threads(1)
for path in sys.argv[1:]:
    train_file(Path(path))
"""


def killed_after(step: int, module: str, config: Path, run: Run) -> bool:
    """Start the run of a training command's module and kill it hard once it has logged `step` steps; whether it was
    still at work. The tests' modules can be found there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", PROGRAM.format(module=module), str(config)]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if run.metrics.exists() and any(line["step"] >= step for line in run.read_metrics()):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def run_in_two(module: str, *configs: Path) -> None:
    """Run a training command's module in two processes, one config after another."""
    program = configs[0].with_name("program.py")
    program.write_text(PROGRAM.format(module=module))
    torchrun(program, *map(str, configs))
