"""The folder that `verify --polygraphy` writes: what Polygraphy's own command line needs to check each graph (inputs,
expected outputs, comparisons), the commands, and what they said."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eecompile.errors import MissingBackend, UsageError
from eecompile.runtime import Bundle
from eecompile.verify.chain import Arrays
from eecompile.verify.commands import chain_command
from eecompile.verify.expected import Expected, expected_outputs
from eecompile.verify.outputs import OutputRules, same_weights
from eecompile.verify.recording import UNCUT, Recording
from eecompile.verify.report import Check, at_most
from eecompile.verify.tolerances import coarsest

Progress = Callable[[str], None]
INPUTS, COMPARE, COMMANDS = "inputs.py", "compare.py", "commands.sh"
MADE_UP, RECORDED = "reference_made_up", "reference_recorded"
_MAIN = "import sys; from polygraphy.tools import main; sys.exit(main())"  # what the `polygraphy` command runs


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
    Recording(bundle.files)


def write_folder(bundle: Bundle, folder: Path) -> list[Command]:
    """Write what Polygraphy needs to check the bundle's graphs one by one, and return the commands that do it.

    Each graph runs on what the recorded prompt gives it and is held against the float32 model, where that was recorded,
    or against float64 arithmetic; the segments together are held against the uncut graph. Paths are absolute.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    recording = Recording(bundle.files)
    expected = expected_outputs(bundle, recording)
    for name, (outputs, _) in expected.items():
        _save_outputs(folder / f"{name}.json", outputs)
    rules = {"compare_outputs": same_weights(coarsest(bundle.manifest)), **{n: r for n, (_, r) in expected.items()}}
    _write_inputs(folder / INPUTS, bundle.files.path, list(recording.graphs))
    _write_comparisons(folder / COMPARE, rules)
    commands = _commands(bundle, folder, recording, expected)
    (folder / COMMANDS).write_text("set -e\n" + "".join(f"{command.line}\n" for command in commands))
    return commands


def run_commands(commands: list[Command], folder: Path, progress: Progress) -> list[Check]:
    """Run each in a process of its own; one check each, and its output in the folder."""
    checks = []
    for command in commands:
        progress(f"polygraphy {command.name}")
        arguments = [sys.executable, "-c", _MAIN, *shlex.split(command.line)[1:]]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        log = folder / f"{command.name}.log"
        log.write_text(done.stdout)
        faults = [line.strip() for line in done.stdout.splitlines() if "FAILED | " in line or line.startswith("[!]")]
        note = f"{'; '.join(faults[:4])} (see {log})" if done.returncode else "polygraphy run"
        checks.append(
            Check(f"polygraphy {command.name}", not done.returncode, {"status": done.returncode},
                  {"status": at_most(0)}, note)
        )  # fmt: skip
    return checks


def _commands(bundle: Bundle, folder: Path, recording: Recording, expected: Mapping[str, Expected]) -> list[Command]:
    """The uncut graph first, on made-up inputs and on the recorded ones; then every other graph."""
    whole = chain_command(bundle, recording.graphs[UNCUT])
    inputs = ["--data-loader-script", str(folder / INPUTS)]
    found = [
        Command(MADE_UP, whole),
        Command(RECORDED, f"{whole} {shlex.join([*inputs, '--compare-func-script', str(folder / COMPARE)])}"),
    ]
    for name, info in recording.graphs.items():
        if name == UNCUT:
            continue
        held = ["--validate"]
        if name in expected:
            held = [
                "--load-outputs",
                str(folder / f"{name}.json"),
                "--compare-func-script",
                f"{folder / COMPARE}:{name}",
            ]
        own = ["--data-loader-script", f"{folder / INPUTS}:{name}"]
        found.append(
            Command(
                name, shlex.join(["polygraphy", "run", str(bundle.files.path / info.path), "--onnxrt", *own, *held])
            )
        )
    return found


def _save_outputs(path: Path, outputs: list[Arrays]) -> None:
    """As Polygraphy saves what runners gave, for --load-outputs."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json

    runner = "float32 model, recorded at build"
    results = RunResults([(runner, [IterationResult(dict(found), runner_name=runner) for found in outputs])])
    save_json(results, str(path))


def _write_inputs(path: Path, bundle: Path, graphs: list[str]) -> None:
    names = ["load_data", *graphs[1:]]
    functions = "".join(f'{n} = partial(_feeds, "{graph}")\n' for n, graph in zip(names, graphs, strict=True))
    path.write_text(
        f'''"""What the graphs of a bundle take when its recorded prompt runs: functions for --data-loader-script."""

from functools import partial
from pathlib import Path

from eecompile.bundle.read import read_bundle
from eecompile.verify.recording import Recording

BUNDLE = Path({str(bundle)!r})


def _feeds(graph):
    return Recording(read_bundle(BUNDLE, integrity="size")).feeds(graph)


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
