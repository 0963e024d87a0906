"""`optimum-cli export eecompile` is `eecompile build`: by optimum where it is installed, and by a double of it."""

import importlib.util
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny

REGISTERED = Path(__file__).parents[2] / "optimum/commands/register/register_eecompile.py"


@dataclass(frozen=True)
class CommandInfo:
    """As optimum's."""

    name: str
    help: str


class Parent:
    """What a command is registered under."""


class Command:
    """As optimum's: a parser under the parent's, and `run` on what it parsed."""

    def __init__(self, subparsers: Any, args: Any = None) -> None:
        self.args = args
        if subparsers is not None:
            parser = subparsers.add_parser(self.COMMAND.name, help=self.COMMAND.help)
            self.parse_args(parser)
            parser.set_defaults(func=lambda found: type(self)(None, found))


def optimum_cli(registered: Any, *arguments: object) -> None:
    """What optimum's `main` does with the registered command and these arguments."""
    root = ArgumentParser("optimum-cli").add_subparsers()
    ((command, parent),) = registered.REGISTER_COMMANDS
    assert parent is Parent
    command(root.add_parser("export").add_subparsers())
    parsed = root.choices["export"].parse_args(list(map(str, arguments)))
    parsed.func(parsed).run()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that optimum loads, which finds the double."""
    doubles = {"base": {"BaseOptimumCLICommand": Command, "CommandInfo": CommandInfo},
               "export": {}, "export.base": {"ExportCommand": Parent}}  # fmt: skip
    for name, members in {
        "optimum": {},
        "optimum.commands": {},
        **{f"optimum.commands.{n}": m for n, m in doubles.items()},
    }.items():
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("register_eecompile", REGISTERED)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def status(registered: Any, *arguments: object) -> Any:
    """The exit status of `optimum-cli export` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        optimum_cli(registered, *arguments)
    return ended.value.code


def test_it_builds(registered: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options may come before the checkpoint."""
    source, out = tiny.checkpoint(tmp_path / "model"), tmp_path / "bundle"
    assert status(registered, "eecompile", "--exits", "1,2", "--no-profile", source, "-o", out) == 0
    assert tiny.Bundle.open(out).manifest.exits[1].layer == 2
    assert "bundle" in capsys.readouterr().out


def test_faults_keep_their_status(
    registered: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert status(registered, "eecompile", tmp_path, "--target", "nowhere", "-o", tmp_path / "bundle") == 2
    assert status(registered, "eecompile", "--help") == 0
    assert "Usage: optimum-cli export eecompile [OPTIONS] CKPT" in capsys.readouterr().out


def test_optimum_itself_finds_it(tmp_path: Path) -> None:
    pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")
    source = tiny.checkpoint(tmp_path / "model")
    main = [sys.executable, "-c", "from optimum.commands.optimum_cli import main; main()"]
    done = subprocess.run(
        [*main, "export", "eecompile", source, "--dry-run", "-o", tmp_path / "bundle", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"family": "llama"' in done.stdout
