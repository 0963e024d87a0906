"""What a peer is: something that continues token ids greedily and says how long that took."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from eecompile.errors import UsageError


@dataclass(frozen=True)
class PeerSetup:
    """What a peer is asked to run. checkpoint: Hugging Face directory; gguf: llama.cpp's file. precision, threads and
    context are the bundle's. workdir: where a converted model may be kept."""

    checkpoint: Path | None
    gguf: Path | None
    precision: str
    threads: int
    context: int
    workdir: Path


class Facts(TypedDict):
    """What a peer runs in fact, for the result."""

    precision: str
    threads: int
    version: str
    note: str


class Peer(Protocol):
    """One runtime. `prepare` comes first and once; it may convert the model, which takes a while."""

    def available(self) -> str | None:
        """Why this peer cannot run on this machine, or None. Imports nothing."""

    def prepare(self, setup: PeerSetup) -> Facts:
        """Load the model. Raises EECompileError where something is missing."""

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """Continue `prompt` greedily by exactly `tokens` tokens, end-of-sequence or not; returns them and the seconds
        from the first to the last."""


def missing(packages: Sequence[str], install: str) -> str | None:
    """Which of `packages` is not installed and how to install it, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed: pip install {install}" if absent else None


def need_checkpoint(setup: PeerSetup, peer: str) -> Path:
    """The checkpoint, or a UsageError that says how to give it."""
    if setup.checkpoint is None or not (setup.checkpoint / "config.json").exists():
        where = "" if setup.checkpoint is None else f", and there is none at {setup.checkpoint}"
        raise UsageError(f"{peer} needs the checkpoint in Hugging Face form{where}: --checkpoint DIR")
    return setup.checkpoint
