"""The main job on a real model, as a user would type it: a student that leaves early, built, run, measured, reported.

The student is SmolLM2 with the few MB that samples/05_train trained: it extracts fields from mails as JSON. Run by
`make demo`, from the repository's root; needs `make inputs`.
"""

import json
import subprocess
import sys
from pathlib import Path

MODEL, PARTS = Path("build/inputs/smollm2"), Path("samples/05_train/student")
MAILS = Path("samples/05_train/mails.jsonl")
STUDENT, BUNDLE = Path("build/demo/student"), Path("build/demo/bundle")
LONGEST, TOKENS = "120", "44"  # of an answer; of what is measured, which does not stop where an answer ends


def shown(word: str) -> str:
    """A word of a command; of a mail its first line."""
    first, *rest = word.split("\n", 1)
    return f'"{first}{" ..." if rest else ""}"' if " " in word else word


def eecompile(*arguments: object, quiet: bool = False) -> str:
    """Run a command, showing it; returns what it printed."""
    words = [str(a) for a in arguments]
    if not quiet:
        print("\n$ eecompile " + " ".join(map(shown, words)), flush=True)
    done = subprocess.run([sys.executable, "-m", "eecompile", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    if not quiet:
        print(done.stdout, end="")
    return done.stdout


def histogram(exit_layers: dict[str, int]) -> None:
    """Tokens by the layers that had run when they were emitted."""
    most, total = max(exit_layers.values()), sum(exit_layers.values())
    for layer, count in sorted(exit_layers.items(), key=lambda item: int(item[0])):
        print(f"  after {int(layer):3d} layers  {'#' * round(40 * count / most):40s} {count / total:6.1%}")


def main() -> None:
    """The whole job; a student that was merged before is used again."""
    if not (STUDENT / "early_exit.json").exists():
        eecompile("merge", MODEL, PARTS, "-o", STUDENT)
    eecompile("build", STUDENT, "--target", "cpu", "-o", BUNDLE)
    mail = json.loads(MAILS.read_text(encoding="utf-8").splitlines()[0])["prompt"]
    for mode in ("full", "confident", "exact"):
        eecompile("run", BUNDLE, mail, "--mode", mode, "--max-new-tokens", LONGEST)

    print("\nSpeed, quality and saved work, measured in alternating rounds:")
    bench = ("bench", BUNDLE, "--prompts", MAILS, "--rounds", 3, "--max-new-tokens", TOKENS, "--json")
    for name, mode in json.loads(eecompile(*bench, quiet=True))["modes"].items():
        print(
            f"\n{name}: {mode['tokens_per_second']:.1f} tokens/s, {mode['speedup']:.2f}x full depth "
            f"(ideal {mode['ideal_speedup']:.2f}x), agreement {mode['agreement']:.1%}"
        )
        histogram(mode["exit_layers"])
    eecompile("report", BUNDLE, "--rounds", 2, "--prompts", MAILS, "--max-new-tokens", TOKENS)


if __name__ == "__main__":
    main()
