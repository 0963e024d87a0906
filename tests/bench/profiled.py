"""What the tests of profile, cost and defaults share: a tiny bundle, a calibration with traces, a profile on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from eecompile.bundle.digest import gates_digest
from eecompile.bundle.manifest import Profile
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import write_overlay

EXITS, CONTEXT = (1, 2), 96
CALIBRATION = "overlays/calibration-fp32-catch_up-8.json"
CHOSEN = [{"max_prob": 0.5}, {"max_prob": 0.4}]
DECLARED = [{"max_prob": 0.9}, {"max_prob": 0.9}]  # drafts of exits given on the command line


def build_tiny(folder: Path, precision: str = "fp32", **options: Any) -> Path:
    """A bundle of a random three-layer llama with exits after layers 1 and 2, uncalibrated, under `folder`."""
    settings = tiny.config(num_hidden_layers=3, max_position_embeddings=CONTEXT)
    return tiny.bundle_at(
        folder / "bundle", tiny.checkpoint(folder / "source", settings), EXITS, precision=precision, **options
    )


def calibrate(bundle: Path, **changes: Any) -> None:
    """Give the bundle a calibration that allows CHOSEN, with the traces and drafts in `changes`."""
    files = read_bundle(bundle, integrity="size")
    gates = gates_digest(files.manifest.exits, files.policy.exits)
    point = {"level": 0.5, "thresholds": CHOSEN, "risk": 0.0, "p_value": 0.01, "exit_rate": 0.5, "mean_depth": 2.0}
    fields = {
        "precision": "fp32", "kv": "catch_up", "pending_cap": 8, "method": "learn-then-test", "loss": "disagreement",
        "risk": 0.02, "error": 0.05, "documents": 4, "tokens": 400, "data": "a" * 64, "gates": gates,
        "path": [point], "chosen": 0,
    }  # fmt: skip
    fields |= changes
    write_overlay(bundle, CALIBRATION.replace("catch_up", str(fields["kv"])), fields)


def costs_of(**seconds: float) -> list[dict[str, Any]]:
    """Passes of a profile in which each graph costs the same whatever its rows and length."""
    return [{"graph": name, "rows": 1, "length": 0, "seconds": s} for name, s in seconds.items()]


def profile_of(passes: list[dict[str, Any]]) -> Profile:
    """A profile of these passes that was not measured anywhere."""
    fields = {"core": "0" * 64, "device": "paper", "threads": 1, "passes": passes, "digest": "0" * 64}
    return Profile.model_validate(fields)
