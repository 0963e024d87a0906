"""The README and the sample, run as they are written, on a tiny model in the place of the real one."""

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "eecompile ": ["-m", "eecompile"],
    "polygraphy ": ["-c", "import sys; from polygraphy.tools import main; sys.exit(main())"],
}
WORDS = ["the", "other", "bath", "these", "path", "then", "moth", "that", "with", "them", "thaw", "hat", "tooth"]


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every eecompile and polygraphy command of the README, in order."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(tuple(PROGRAMS))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a tiny model of 30 layers, and made-up documents, stand where `make inputs` puts its own."""
    root = tmp_path_factory.mktemp("docs")
    settings = tiny.config(vocab_size=288, num_hidden_layers=30)
    tiny.add_tokenizer(tiny.checkpoint(root / "build/inputs/smollm2", settings, gain=0.2))
    texts, chance = root / "build/inputs/texts/gsm8k.jsonl", random.Random(1)
    texts.parent.mkdir(parents=True)
    lines = (json.dumps({"text": " ".join(chance.choices(WORDS, k=12))}) for _ in range(700))
    texts.write_text("\n".join(lines) + "\n")
    return root


def run(arguments: list[str], place: Path) -> str:
    """Run Python with these arguments there; it has to succeed."""
    done = subprocess.run([sys.executable, *arguments], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 12
    assert len(blocks("python")) >= 1


def test_readme_commands_and_python_run_in_order(place: Path) -> None:
    pytest.importorskip("polygraphy")
    for command in commands():
        program, *arguments = shlex.split(command)
        run([*PROGRAMS[f"{program} "], *arguments], place)
    for code in blocks("python"):
        assert run(["-c", code], place).strip()
    run([str(ROOT / "samples/01_quickstart/generate.py"), "build/bundle"], place)


def test_every_command_is_in_the_readme() -> None:
    from eecompile.cli import main

    table = README.split("## Commands")[1].split("## ")[0]
    assert [name for name in main.commands if f"`{name}`" not in table] == []
