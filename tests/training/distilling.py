"""A tiny run of `train distill`: checkpoint, documents, config."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import yaml
from eecompile_training.config import merge

from eecompile.student.store import WeightStore
from eecompile.student.student import open_student

GAIN = 0.35
EVERYTHING: dict[str, Any] = {  # every kind of loss at once, and what draws at random
    "layer_dropout": {"p_max": 0.3},
    "curriculum": {"kind": "rotational", "every": 2},
    "exits": {"gates": ["learned", "max_prob"], "units": 4},
    "losses": {
        "last_kl": 0.5,
        "exits": {"kl": 1.0, "ce": 0.5, "of": "teacher", "temperature": 2.0, "warmup": 3, "vocabulary": 64},
        "hidden": {"map": {"kind": "dynamic", "every": 4}},
        "attention": {"weight": 0.1},
        "to_final": {"weight": 0.5},
        "anchor": {"ce": 0.1, "every": 1},
        "gates": 1.0,
    },
}


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


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a student, exits included."""
    exits = open_student(folder).exits.store
    stores = [WeightStore.open(folder), *([] if exits is None else [exits])]
    return {name: store.read(name) for store in stores for name in store.tensors}


def torchrun(program: Path, *arguments: str) -> None:
    """Run a Python file in two processes with a thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(program)]
    subprocess.run([*launch, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
