"""From an ordinary checkpoint to a student that leaves early, and what that is worth: the evidence of docs/TRAINING.md.

Run by `make train-demo`, from the repository's root, in up to 90 minutes on two cores. A step that is done is not done
again; `build/train-demo/report.json` has every figure, `build/train-demo/parts` the few MB that were trained.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

HERE, OUT, INPUTS = Path(__file__).parent, Path("build/train-demo"), Path("build/inputs")
MODEL, MAILS, GENERAL = INPUTS / "smollm2", INPUTS / "extraction", INPUTS / "general"
START, PARTS, MERGED = OUT / "start", OUT / "parts", OUT / "merged"
BUNDLE, TUNED = OUT / "bundle", OUT / "tuned"
UNSEEN = {
    "mails": MAILS / "heldout.jsonl", "text": GENERAL / "text-heldout.jsonl", "code": GENERAL / "code-heldout.jsonl",
    "brown": INPUTS / "brown" / "brown.jsonl",
}  # fmt: skip
BENCHED, ROUNDS, TOKENS = 12, 5, 48
RISK, CALIBRATION = 0.02, 1000


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
    """Held-out mails to generate from, spread over the file; `bench` does not stop at a text's end, so those whose JSON
    is at least TOKENS long."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    mails = [json.loads(line) for line in UNSEEN["mails"].read_text(encoding="utf-8").splitlines()]
    long = [mail["prompt"] for mail in mails if len(tokenizer.encode(mail["completion"]).ids) >= TOKENS]
    path = OUT / "prompts.jsonl"
    chosen = long[:: max(1, len(long) // BENCHED)][:BENCHED]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in chosen), encoding="utf-8")
    return path


def calibrated(bundle: Path) -> Any:
    """Calibrate a bundle in its own precision on mails that its gates have not learnt from."""
    mails = MAILS / "calibrate.jsonl"
    return eecompile("calibrate", bundle, "--data", mails, "--risk", RISK, "--limit", CALIBRATION, as_json=True)


def tuned() -> dict[str, Any]:
    """The gate tuned by GRPO, in a bundle of its own, calibrated to the same risk; what training said of it."""
    run = OUT / "policy"
    if not (run / "gates.json").exists():
        eecompile("train", "policy", HERE / "policy.yaml", *(["--resume"] if (run / "run.json").exists() else []))
    shutil.rmtree(TUNED, ignore_errors=True)
    shutil.copytree(BUNDLE, TUNED)
    eecompile("policy", TUNED, "set", "--gates", run / "gates.json")
    evaluation: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    del evaluation["curves"]
    return {"evaluation": evaluation, "calibration": calibrated(TUNED)}


def judged() -> Any:
    """The exit before and after training, on what neither has seen."""
    both, found = (START, OUT / "exits" / "student"), dict[str, Any]()
    for name, file in UNSEEN.items():
        most = ("--documents", 96, "--tokens", 128) if name == "mails" else ("--documents", 32, "--tokens", 64)
        for path, figures in eecompile(
            "train", "judge", *both, "--data", f"{name}={file}", *most, as_json=True
        ).items():
            found.setdefault(path, {}).update(figures)
    return found


def built() -> Any:
    """The bundle, in float32, and its calibration."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    eecompile("build", OUT / "exits" / "student", "--target", "cpu", "--precision", "fp32", "-o", BUNDLE)
    return calibrated(BUNDLE)


def benched() -> Any:
    """All modes of the bundle, and those with the tuned gate in the same rounds."""
    lengths = ("--max-new-tokens", TOKENS, "--rounds", ROUNDS)
    return eecompile("bench", BUNDLE, "--beside", TUNED, "--prompts", prompts(), *lengths, as_json=True)


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gave, and its seconds, from the file where it is already there."""
    path = OUT / f"{name}.json"
    if not path.exists():
        began = time.perf_counter()
        found = make()
        path.write_text(
            json.dumps({"seconds": round(time.perf_counter() - began, 1), "found": found}), encoding="utf-8"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Everything, each part timed."""
    OUT.mkdir(parents=True, exist_ok=True)
    parts = {"train": student, "exits": judged, "calibration": built, "policy": tuned, "bench": benched}
    report = {name: kept(name, make) for name, make in parts.items()}
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
