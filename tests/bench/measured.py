"""Bundles whose exits fire, and results to draw, for the tests of bench and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny

from eecompile import contract as c
from eecompile.bench.results import BenchResult, GraphTime, Machine, ModeResult, PeerResult, UncutResult
from eecompile.bundle.manifest import Policy
from eecompile.bundle.write import write_overlay
from eecompile.runtime import Bundle

EXITS = (1, 2, 3)


def with_drafts(path: Path, drafts: Sequence[Mapping[str, float] | None]) -> Bundle:
    """Let each exit draft at these thresholds; the rest of the policy stays."""
    policy = Bundle.open(path, integrity="size").files.policy
    exits = [e.model_copy(update={"draft": d}) for e, d in zip(policy.exits, drafts, strict=True)]
    write_overlay(path, c.POLICY, Policy.model_copy(policy, update={"exits": exits}))
    return Bundle.open(path, integrity="size")


def open_exits(path: Path, source: Path, bold: float, precision: str = "fp32") -> Bundle:
    """A calibrated bundle whose exits all fire, in both modes, where max_prob is above `bold`."""
    tiny.bundle_at(path, source, EXITS, precision=precision, slots=8)
    tiny.calibrate(path, [{"max_prob": bold}] * len(EXITS))
    return with_drafts(path, [{"max_prob": bold}] * len(EXITS))


def mode(**changes: Any) -> ModeResult:
    """One mode's figures."""
    fields = {
        "tokens_per_second": 50.0, "round_seconds": [2.0, 1.9, 2.2], "agreement": 1.0, "equal_tokens": 100,
        "tokens": 100, "mean_depth": 3.0, "ideal_speedup": 1.3, "speedup": 1.25, "layer_rows": 4.5, "drafted": 40,
        "rejected": 5, "overhead": 0.1, "exit_layers": {1: 20, 2: 20, 4: 60}, "note": "",
        "time": {"embed": 1e-3, "segment_0": 4e-3, "segment_1": 4e-3, "exit_0": 1e-3, "head": 8e-3, "runtime": 2e-3},
    }  # fmt: skip
    return ModeResult(**{**fields, **changes})


def result(core: str, **changes: Any) -> BenchResult:
    """A result with everything in it."""
    at = {"device": "a processor", "processors": 2, "threads": 2, "system": "Linux x86_64", "python": "3.11"}
    peer = {
        "tokens_per_second": 20.0, "round_seconds": [5.0], "speed_ratio": 2.0, "tokens_equal": False,
        "equal_prompts": 1, "precision": "fp32", "threads": 2, "version": "1.0", "note": "",
    }  # fmt: skip
    fields: dict[str, Any] = {
        "eecompile": "0.1.0", "core": core, "policy": "b" * 64, "precision": "fp32", "layers": 4,
        "machine": Machine(onnxruntime="1.31", **at), "prompts": 2, "prompt_tokens": 20, "max_new_tokens": 51,
        "rounds": 3, "refused": {}, "skipped": {"llama.cpp": "not installed"}, "chain_over_uncut": 1.02,
        "modes": {
            "full": mode(speedup=1.0, ideal_speedup=1.0, exit_layers={4: 100}, mean_depth=4.0),
            "confident": mode(agreement=0.97),
            "exact": mode(speedup=0.9),
        },
        "uncut": UncutResult(tokens_per_second=51.0, round_seconds=[2.0], equal_tokens=100),
        "graphs": [GraphTime(graph="head", rows=1, seconds=0.008, passes=99)],
        "peak_memory_mb": 123.0, "memory_includes": "everything", "peers": {"genai": PeerResult(**peer)},
    }  # fmt: skip
    return BenchResult(**{**fields, **changes})
