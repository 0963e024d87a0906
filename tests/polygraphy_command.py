"""Polygraphy's command line, outside this process: ONNX Runtime gives a process one kind of thread pool."""

import atexit
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Said:
    """How a command ended, and all that it said."""

    returncode: int
    stdout: str


def polygraphy(*arguments: object) -> Said:
    """Run `polygraphy` with these arguments."""
    pytest.importorskip("polygraphy")
    assert "eecompile" in entry_points(group="polygraphy.run.plugins").names, (
        "install eecompile again: pip install -e ."
    )
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile() as log:
        server.stdin.write(json.dumps([log.name, list(map(str, arguments))]) + "\n")
        server.stdin.flush()
        return Said(int(server.stdout.readline()), Path(log.name).read_text())


@cache
def _server() -> "subprocess.Popen[str]":
    """One for all tests: Polygraphy takes longer to load than to run."""
    command = [sys.executable, "-m", "eecompile.verify.polygraphy_process"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server
