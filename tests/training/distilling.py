"""A tiny run of `train distill`: checkpoint, documents, config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import yaml
from eecompile_training.config import merge

GAIN = 0.35


def documents(path: Path, count: int = 40, length: int = 40, vocab: int = tiny.VOCAB) -> Path:
    """Documents of random ids that repeat themselves, so that there is something to learn."""
    rng = np.random.default_rng(0)
    rows = [np.resize(rng.integers(0, vocab, 4), length).tolist() for _ in range(count)]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return path


def config(root: Path, **changes: Any) -> dict[str, Any]:
    """A config for a tiny model in `root`; the checkpoint and the documents are made where they are not there."""
    if not (root / "model").exists():
        tiny.checkpoint(root / "model", tiny.config(tie_word_embeddings=True), gain=GAIN)
        documents(root / "d.jsonl")
    given = {
        "model": str(root / "model"), "output": str(root / "run"),
        "data": {"files": [str(root / "d.jsonl")], "length": 16}, "exits": {"at": [1, 3]}, "steps": 12, "batch": 4,
        "log_every": 1, "evaluate_every": 4, "checkpoint_every": 3, "chunk": 24, "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    return merge(given, changes)


def write_config(root: Path, **changes: Any) -> Path:
    """The same as a YAML file."""
    path = root / "c.yaml"
    path.write_text(yaml.safe_dump(config(root, **changes)))
    return path
