"""From an ordinary checkpoint to a student that leaves early, and what that is worth: the evidence of docs/TRAINING.md.

Run by `make train-demo`, from the repository's root, in up to 90 minutes on two cores. A step that is done is not done
again; `build/train-demo/report.json` has every figure, `build/train-demo/parts` the few MB that were trained.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE, OUT, INPUTS = Path(__file__).parent, Path("build/train-demo"), Path("build/inputs")
MODEL, MAILS, GENERAL = INPUTS / "smollm2", INPUTS / "extraction", INPUTS / "general"
START, PARTS, MERGED, BUNDLE = OUT / "start", OUT / "parts", OUT / "merged", OUT / "bundle"
UNSEEN = {
    "mails": MAILS / "heldout.jsonl", "text": GENERAL / "text-heldout.jsonl", "code": GENERAL / "code-heldout.jsonl",
    "brown": INPUTS / "brown" / "brown.jsonl",
}  # fmt: skip
BENCHED, ROUNDS, TOKENS = 12, 5, 64


def eecompile(*arguments: object, as_json: bool = False) -> Any:
    """Run a command, showing it; returns what it printed as JSON where asked for."""
    words = [str(a) for a in arguments]
    print("\n$ eecompile " + " ".join(words), flush=True)
    whole = [sys.executable, "-m", "eecompile", *words, *(["--json"] if as_json else [])]
    done = subprocess.run(whole, stdout=subprocess.PIPE if as_json else None, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout) if as_json else None


def trained(config: Path, run: Path, verb: str) -> None:
    """Train by a config unless it is done; what was killed goes on."""
    if not (run / "student").exists():
        eecompile("train", verb, config, *(["--resume"] if (run / "run.json").exists() else []))


def halved(adapter: Path, out: Path) -> None:
    """The adapter with its factors in bfloat16, two bytes a number; everything after is measured with these."""
    shutil.copytree(adapter, out)
    file = out / "adapter_model.safetensors"
    save_file({name: t.to(torch.bfloat16) for name, t in load_file(file).items()}, file, metadata={"format": "pt"})


def student() -> None:
    """Fit an exit, distil, merge, fit gates; PARTS then has the adapter and the calibrated exit."""
    if not START.exists():
        eecompile("exits", MODEL, "--at", 8, "--fit", MAILS / "fit.jsonl", "--limit", 300, "--risk", 0.1, "-o", START)
    trained(HERE / "distill.yaml", OUT / "distill", "distill")
    if not MERGED.exists():
        shutil.rmtree(PARTS, ignore_errors=True)
        halved(OUT / "distill" / "adapter", PARTS)
        eecompile("merge", MODEL, PARTS, "-o", MERGED)
    trained(HERE / "exits.yaml", OUT / "exits", "exits")
    for name in ("early_exit.json", "early_exit.safetensors"):
        shutil.copy(OUT / "exits" / "student" / name, PARTS / name)


def prompts() -> Path:
    """Held-out mails to generate from, spread over the file."""
    lines = UNSEEN["mails"].read_text(encoding="utf-8").splitlines()
    path, step = OUT / "prompts.jsonl", max(1, len(lines) // BENCHED)
    chosen = [json.dumps({"prompt": json.loads(line)["prompt"]}) + "\n" for line in lines[::step][:BENCHED]]
    path.write_text("".join(chosen), encoding="utf-8")
    return path


def main() -> None:
    """Everything, each part timed."""
    seconds, report = dict[str, float](), dict[str, Any]()

    def timed(name: str, began: float) -> None:
        seconds[name] = round(time.perf_counter() - began, 1)

    OUT.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    student()
    timed("train", began)

    began = time.perf_counter()
    slices = [word for name, file in UNSEEN.items() for word in ("--data", f"{name}={file}")]
    report["exits"] = eecompile("train", "judge", START, OUT / "exits" / "student", *slices, as_json=True)
    timed("judge", began)

    began = time.perf_counter()
    if not BUNDLE.exists():
        eecompile("build", OUT / "exits" / "student", "--target", "cpu", "--precision", "fp32", "-o", BUNDLE)
    mails = MAILS / "calibrate.jsonl"
    report["calibration"] = eecompile("calibrate", BUNDLE, "--data", mails, "--risk", 0.02, as_json=True)
    timed("build and calibrate", began)

    began = time.perf_counter()
    bench = ("bench", BUNDLE, "--prompts", prompts(), "--max-new-tokens", TOKENS, "--rounds", ROUNDS)
    report["bench"] = eecompile(*bench, as_json=True)
    timed("bench", began)

    report["seconds"] = seconds
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
