"""Who may import whom: one table, and a runtime that works where torch and transformers cannot be imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1] / "eecompile"
VALUES = {"errors", "contract", "schema", "shapes", "target", "files"}
MODEL = {"student", "segments", "engines", "plugins", "bundle"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "contract": set(),
    "schema": {"contract"},
    "shapes": {"contract", "schema"},
    "target": {"schema", "errors", "contract"},
    "student": VALUES,
    "segments": VALUES | {"student"},
    "plugins": VALUES,
    "engines": VALUES | {"plugins"},
    "bundle": VALUES,
    "runtime": VALUES | {"bundle", "engines", "plugins"},
    "calibrate": VALUES | MODEL | {"runtime"},
    "verify": VALUES | MODEL | {"runtime"},
    "bench": VALUES | MODEL | {"runtime"},
    "pipeline": VALUES
    | MODEL
    | {"runtime", "calibrate", "verify", "bench", "pipeline_encoder", "pipeline_device", "pipeline_scales"},
    "pipeline_encoder": VALUES | MODEL,
    "pipeline_device": VALUES | MODEL,
    "pipeline_engines": VALUES | MODEL | {"runtime"},
    "pipeline_scales": VALUES | MODEL | {"runtime", "calibrate"},
    "polygraphy_plugin": VALUES | MODEL | {"verify"},
    "cli": VALUES
    | MODEL
    | {"runtime", "calibrate", "verify", "bench", "pipeline", "pipeline_encoder", "pipeline_engines"}
    | {"pipeline_scales"},
    "__main__": {"cli"},
}
EDGE = ("bundle", "engines", "plugins", "runtime")  # what a device without torch runs
HEAVY = {"torch", "transformers", "eecompile_training"}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The package, or module, directly under eecompile that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as a full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_training_is_named_by_the_command_line_alone(path: Path) -> None:
    assert part(path) == "cli" or "eecompile_training" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_the_table_allows(path: Path) -> None:
    mine = part(path)
    if mine == "__init__":
        assert list(imported(path)) == []
        return
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("eecompile.")} - {"__version__"}
    assert mine in MAY_IMPORT, f"{mine} is new: give it a line in MAY_IMPORT"
    assert inside <= MAY_IMPORT[mine] | {mine}


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in EDGE], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_edge_never_names_torch(path: Path) -> None:
    assert not HEAVY & {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_is_never_imported_with_a_module(path: Path) -> None:
    """Where torch is used at all, it is inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]:
        function.body = [ast.Pass()]
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not HEAVY & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_polygraphys_own_plugin_imports_it_with_a_module(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in tops for a in n.names} | {getattr(n, "module", "") for n in tops}
    assert part(path) == "polygraphy_plugin" or "polygraphy" not in {name.split(".")[0] for name in names if name}


BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it now raises ImportError
{program}
assert not [n for n in sys.modules if n.split(".")[0] in {blocked!r} and sys.modules[n] is not None]
"""
DECODE = """
from eecompile.runtime import Bundle
bundle = Bundle.open(sys.argv[1])
print([t.id for t in bundle.session(mode="exact").generate([1, 2, 3], max_new_tokens=8)])
"""
BUILD = """
from pathlib import Path
from eecompile.pipeline import BuildOptions, build
from eecompile.student.student import open_student
from eecompile.target import load_target
build(open_student(Path(sys.argv[1]), [2]), load_target("cpu"), Path(sys.argv[2]), BuildOptions())
"""


def blocked(program: str, names: set[str], *arguments: Path) -> str:
    """What a program prints in a process where `names` cannot be imported."""
    source = BLOCKED.format(blocked=sorted(names), program=program)
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_device_decodes_without_torch_or_the_compiler(tmp_path: Path) -> None:
    """A bundle runs with neither torch nor transformers, nor what only a build reads checkpoints with."""
    source = tiny.checkpoint(tmp_path / "checkpoint")
    path = tiny.bundle_at(tmp_path / "bundle", source, [2])
    expected = tiny.tokens(tiny.Bundle.open(path), [1, 2, 3], 8)
    assert blocked(DECODE, {*HEAVY, "safetensors", "gguf"}, path) == str(expected)


def test_a_build_needs_no_torch(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint")
    blocked(BUILD, HEAVY, source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_a_blocked_import_does_fail() -> None:
    """The two tests above can fail."""
    with pytest.raises(AssertionError, match="torch"):
        blocked("import torch", HEAVY)
