"""An encoder from end to end: Rampart marks personal data in mails, and leaves its layers as soon as it is sure.

Run by `make classifier`, from the repository's root; needs `python tools/inputs.py rampart mails`.
"""

import json
import subprocess
import sys
from pathlib import Path

MODEL, MAILS = Path("build/inputs/rampart"), Path("build/inputs/mails")
STUDENT, BUNDLE = Path("build/classifier/student"), Path("build/classifier/bundle")
TEXTS, ANSWERS = Path("build/classifier/texts.jsonl"), Path("build/classifier/answers.jsonl")
TEXT = "Please call Anna Kowalski on 555-0142, or write to anna@example.org."
COUNT = 200


def eecompile(*arguments: object) -> str:
    """Run a command, showing it; returns what it printed."""
    words = [str(a) for a in arguments]
    print("\n$ eecompile " + " ".join(w if " " not in w else f'"{w}"' for w in words), flush=True)
    done = subprocess.run([sys.executable, "-m", "eecompile", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout, end="")
    return done.stdout


def write_texts() -> None:
    """Sentences of mails that nothing was fitted or calibrated on, one a line."""
    mails = (MAILS / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [text for mail in mails for text in json.loads(mail)["texts"]][:COUNT]
    TEXTS.parent.mkdir(parents=True, exist_ok=True)
    TEXTS.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences), encoding="utf-8")


def histogram(answers: Path) -> None:
    """Tokens by the layers that had run when they were answered."""
    lines = answers.read_text(encoding="utf-8").splitlines()
    depths = [token["exit_layer"] for line in lines for token in json.loads(line)["tokens"]]
    for layer in sorted(set(depths)):
        share = depths.count(layer) / len(depths)
        print(f"  after {layer} layers  {'#' * round(40 * share):40s} {share:6.1%}")


def main() -> None:
    """The whole way; a student that was fitted before is used again."""
    if not (STUDENT / "early_exit.json").exists():
        data = MAILS / "calibrate.jsonl"
        eecompile("exits", MODEL, "--at", "2,3,4", "--fit", data, "--risk", 0.05, "--limit", 300, "-o", STUDENT)
    eecompile("build", STUDENT, "-o", BUNDLE)
    eecompile("verify", BUNDLE)
    eecompile("run", BUNDLE, TEXT)
    eecompile("run", BUNDLE, TEXT, "--mode", "confident")
    write_texts()
    eecompile("run", BUNDLE, "--input", TEXTS, "--output", ANSWERS, "--mode", "confident")
    histogram(ANSWERS)
    eecompile("bench", BUNDLE, "--prompts", TEXTS)
    eecompile("report", BUNDLE, "--prompts", TEXTS, "--rounds", 1)


if __name__ == "__main__":
    main()
