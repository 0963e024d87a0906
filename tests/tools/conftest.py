"""What tests of the tools share."""

from types import ModuleType

import pytest
from scripts import TOOLS, load_script


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/inputs.py, loaded afresh as a script."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return load_script("inputs", "eecompile_inputs")
