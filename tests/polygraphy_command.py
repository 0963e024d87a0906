"""Polygraphy's command line, in a process of its own: ONNX Runtime gives a process one kind of thread pool."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest


def polygraphy(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run `polygraphy` with these arguments; what it says is all in `stdout`."""
    pytest.importorskip("polygraphy")
    assert "eecompile" in entry_points(group="polygraphy.run.plugins").names, (
        "install eecompile again: pip install -e ."
    )
    main = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]
    return subprocess.run(
        [*main, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=400,
    )  # fmt: skip
