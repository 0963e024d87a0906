"""The folder that `verify --polygraphy` writes: what Polygraphy's own command line needs to check each graph (inputs,
expected outputs, comparisons), the commands, and what they said."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eecompile.errors import MissingBackend, UsageError
from eecompile.runtime import Bundle
from eecompile.verify.chain import Arrays
from eecompile.verify.commands import chain_command
from eecompile.verify.graph_checks import GraphCheck, graph_checks
from eecompile.verify.outputs import OutputRules, same_weights
from eecompile.verify.recording import UNCUT, Recording
from eecompile.verify.report import Check, at_most
from eecompile.verify.tolerances import coarsest

Progress = Callable[[str], None]
INPUTS, COMPARE, COMMANDS = "inputs.py", "compare.py", "commands.sh"
MADE_UP, RECORDED = "reference_made_up", "reference_recorded"
HEADER = "# written by `eecompile verify --polygraphy`"  # of the commands, by which an earlier folder is known
_SERVER = [sys.executable, "-m", "eecompile.verify.polygraphy_process"]


@dataclass(frozen=True)
class Command:
    """A Polygraphy command line: `name` is that of its check and of its log."""

    name: str
    line: str


def check_polygraphy(bundle: Bundle, folder: Path) -> None:
    """Raise MissingBackend without Polygraphy, and UsageError for a folder or a bundle that will not do."""
    if find_spec("polygraphy") is None:
        raise MissingBackend("Polygraphy is not installed", mend="pip install 'eecompile[verify]'")
    if folder.resolve().is_relative_to(bundle.files.path):
        mend = "name another folder: a bundle holds what its manifest lists, and nothing else"
        raise UsageError("the folder is in the bundle", where=str(folder), mend=mend)
    _check_replaceable(folder)
    Recording(bundle.files)


def _check_replaceable(folder: Path) -> None:
    """Refuse what would lose somebody's files."""
    if not folder.exists():
        return
    mend = "name a folder that is not there yet, an empty one, or one that this command wrote"
    if not folder.is_dir():
        raise UsageError("it is a file, not a folder", where=str(folder), mend=mend)
    commands = folder / COMMANDS
    own = commands.is_file() and commands.read_bytes().startswith(HEADER.encode())
    if not own and any(folder.iterdir()):
        raise UsageError("the folder has files that this command did not write", where=str(folder), mend=mend)


def write_folder(bundle: Bundle, folder: Path) -> list[Command]:
    """Write what Polygraphy needs to check the bundle's graphs one by one, and return the commands that do it.

    Each graph runs on what the recorded prompt gives it and is held against the float32 model, where that was recorded,
    or against float64 arithmetic; the segments together are held against the uncut graph. Paths are absolute.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    recording = Recording(bundle.files)
    checks = graph_checks(bundle, recording)
    rules = {"compare_outputs": same_weights(coarsest(bundle.manifest))}
    for check in checks:
        if check.expected is not None:
            outputs, rules[check.name] = check.expected
            _save_outputs(folder / f"{check.name}.json", outputs)
    _write_inputs(folder / INPUTS, bundle.files.path, checks)
    _write_comparisons(folder / COMPARE, rules)
    whole = chain_command(bundle, recording.graphs[UNCUT])
    given = ["--data-loader-script", str(folder / INPUTS), "--compare-func-script", str(folder / COMPARE)]
    commands = [Command(MADE_UP, whole), Command(RECORDED, f"{whole} {shlex.join(given)}")]
    commands += [_command(check, folder) for check in checks]
    (folder / COMMANDS).write_text(f"{HEADER}\nset -e\n" + "".join(f"{command.line}\n" for command in commands))
    return commands


def run_commands(commands: Sequence[Command], folder: Path, progress: Progress) -> list[Check]:
    """Run each in a process of its own; one check each, and its output in the folder."""
    checks = []
    folder = folder.resolve()
    with subprocess.Popen(_SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for command in commands:
            progress(f"polygraphy {command.name}")
            log = folder / f"{command.name}.log"
            server.stdin.write(json.dumps([str(log), shlex.split(command.line)[1:]]) + "\n")
            server.stdin.flush()
            checks.append(_check(command, int(server.stdout.readline()), log))
        server.stdin.close()
    return checks


def _check(command: Command, status: int, log: Path) -> Check:
    lines = log.read_text(errors="replace").splitlines() if status else []
    faults = [line.strip() for line in lines if "FAILED | " in line or line.startswith("[!]")]
    note = f"{'; '.join(faults[:4])} (see {log})" if status else "polygraphy run"
    return Check(f"polygraphy {command.name}", not status, {"status": status}, {"status": at_most(0)}, note)


def _command(check: GraphCheck, folder: Path) -> Command:
    given = ["--data-loader-script", f"{folder / INPUTS}:{check.name}"]
    if check.expected is None:
        given += ["--validate"]  # that what comes out is finite
    else:
        given += ["--load-outputs", str(folder / f"{check.name}.json")]
        given += ["--compare-func-script", f"{folder / COMPARE}:{check.name}"]
    return Command(check.name, shlex.join(["polygraphy", "run", str(check.path), *check.runner, *given]))


def _save_outputs(path: Path, outputs: list[Arrays]) -> None:
    """As Polygraphy saves what runners gave, for --load-outputs."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json

    runner = "expected"
    results = RunResults([(runner, [IterationResult(dict(found), runner_name=runner) for found in outputs])])
    save_json(results, str(path))


def _write_inputs(path: Path, bundle: Path, checks: list[GraphCheck]) -> None:
    feeds: dict[str, tuple[str, int | None]] = {"load_data": (UNCUT, None), **{c.name: c.feeds for c in checks}}
    functions = "".join(f"{name} = partial(_feeds, {graph!r}, {length})\n" for name, (graph, length) in feeds.items())
    path.write_text(
        f'''"""What the graphs of a bundle take when its recorded prompt runs: functions for --data-loader-script."""

from functools import partial
from pathlib import Path

from eecompile.bundle.read import read_bundle
from eecompile.verify.recording import Recording

BUNDLE = Path({str(bundle)!r})


def _feeds(graph, length):
    return Recording(read_bundle(BUNDLE, integrity="size"), length).feeds(graph)


{functions}'''
    )


def _write_comparisons(path: Path, rules: Mapping[str, OutputRules]) -> None:
    functions = "".join(f"{name} = comparison({rule!r})\n" for name, rule in rules.items())
    path.write_text(
        f'''"""How far a graph's outputs may be off, and which decisions differ: functions for --compare-func-script."""

from eecompile.verify.outputs import OutputRules
from eecompile.verify.polygraphy_compare import comparison
from eecompile.verify.tolerances import Band

{functions}'''
    )
