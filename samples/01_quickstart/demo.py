"""The main job on a real model, as a user would type it: fit exits, build, generate in every mode, measure, report.

Run by `make demo`, from the repository's root; needs `make inputs`.
"""

import json
import subprocess
import sys
from pathlib import Path

MODEL, TEXT = Path("build/inputs/smollm2"), Path("build/inputs/texts/gsm8k.jsonl")
STUDENT, BUNDLE = Path("build/demo/student"), Path("build/demo/bundle")
EXITS = "22,26"
QUESTION = "What is the capital of France, and what is it known for?"
TOKENS = "48"


def eecompile(*arguments: object, quiet: bool = False) -> str:
    """Run a command, showing it; returns what it printed."""
    words = [str(a) for a in arguments]
    if not quiet:
        print("\n$ eecompile " + " ".join(w if " " not in w else f'"{w}"' for w in words), flush=True)
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
    """The whole job; a student that was fitted before is used again."""
    if not (STUDENT / "early_exit.json").exists():
        eecompile("exits", MODEL, "--at", EXITS, "--fit", TEXT, "--risk", 0.1, "--limit", 240, "-o", STUDENT)
    eecompile("build", STUDENT, "--target", "cpu", "-o", BUNDLE)
    for mode in ("full", "confident", "exact"):
        eecompile("run", BUNDLE, QUESTION, "--mode", mode, "--max-new-tokens", TOKENS)

    print("\nExact mode with exits that draft too boldly: slower, and still the same text.")
    bold = [f"{layer}:{gate}=0.2" for layer in EXITS.split(",") for gate in ("learned", "max_prob")]
    thresholds = [word for value in bold for word in ("--threshold", value)]
    eecompile("run", BUNDLE, QUESTION, "--mode", "exact", "--max-new-tokens", TOKENS, *thresholds)

    print("\nSpeed, quality and saved work, measured in alternating rounds:")
    result = json.loads(eecompile("bench", BUNDLE, "--rounds", 3, "--max-new-tokens", TOKENS, "--json", quiet=True))
    for name, mode in result["modes"].items():
        print(
            f"\n{name}: {mode['tokens_per_second']:.1f} tokens/s, {mode['speedup']:.2f}x full depth "
            f"(ideal {mode['ideal_speedup']:.2f}x), agreement {mode['agreement']:.1%}"
        )
        histogram(mode["exit_layers"])
    eecompile("report", BUNDLE, "--rounds", 2)


if __name__ == "__main__":
    main()
