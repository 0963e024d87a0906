"""Scripts of tools/, loaded as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / "tools"


def load_script(name: str, known_as: str = "") -> ModuleType:
    """tools/NAME.py, loaded afresh, under a name of its own where it might meet another module's."""
    spec = importlib.util.spec_from_file_location(known_as or name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
