"""Real models that tests use where they are."""

from pathlib import Path

import pytest

INPUTS = Path(__file__).parent.parent / "build" / "inputs"


def real_input(name: str) -> Path:
    """The folder of a checkpoint that tools/inputs.py makes; skips the test where it is not there."""
    folder = INPUTS / name
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"build/inputs/{name} is absent: run tools/inputs.py {name}")
    return folder
