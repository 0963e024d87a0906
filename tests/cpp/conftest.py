"""The C++ runtime, compiled once a session."""

from pathlib import Path

import pytest
from compiled import compile_all


@pytest.fixture(scope="session")
def command() -> Path:
    """The path of eecompile-run."""
    return compile_all("cpp-test") / "eecompile-run"


@pytest.fixture(scope="session")
def library() -> Path:
    """The path of the library with the C interface."""
    return compile_all("cpp-test") / "libeecompile.so"
