"""ONNX Runtime GenAI: its own model builder converts the checkpoint, its own loop decodes it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from eecompile import contract as c
from eecompile.bench.peers.base import Facts, PeerSetup, missing, need_checkpoint
from eecompile.errors import EECompileError, MissingBackend

# its CPU kernels take neither float16 nor products of 8-bit numbers
PRECISIONS = {"fp32": "fp32", "fp16": "fp32", "w8a8": "fp32", "fp8": "fp32", "int8": "int8", "int4": "int4"}
QUANTISATION = (f"block_size={c.BLOCK}", "accuracy_level=4")  # as the bundle's own


class GenAI:
    """See Peer."""

    def __init__(self) -> None:
        self._model: Any = None
        self._ends: list[int] = []

    def available(self) -> str | None:
        """See Peer."""
        return missing(["onnxruntime_genai"], "onnxruntime-genai")

    def prepare(self, setup: PeerSetup) -> Facts:
        """See Peer. The converted model is kept in the work directory, named by what it was made from."""
        precision = PRECISIONS[setup.precision]
        folder = convert(need_checkpoint(setup, "genai"), precision, setup.workdir)
        import onnxruntime_genai as genai

        config = genai.Config(str(folder))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": setup.threads}}}}
        config.overlay(json.dumps(options))
        self._model = genai.Model(config)
        ends = json.loads((folder / "genai_config.json").read_text())["model"].get("eos_token_id", [])
        self._ends = ends if isinstance(ends, list) else [ends]
        note = f"blocks of {c.BLOCK}, accuracy level 4" if precision in c.QUANTISED else ""
        version = f"onnxruntime-genai {genai.__version__}"
        return {"precision": precision, "threads": setup.threads, "version": version, "note": note}

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """See Peer. It keeps an end-of-sequence token to itself and stops; handed back to it, it goes on."""
        import onnxruntime_genai as genai

        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt) + tokens, do_sample=False)
        generator, wanted = genai.Generator(self._model, parameters), len(prompt) + tokens
        generator.append_tokens(list(prompt))
        began = 0.0
        while generator.token_count() < wanted:
            generator.generate_next_token()
            began = began or perf_counter()
            if generator.is_done() and generator.token_count() < wanted:
                generator.append_tokens(self._ends[:1])
        seconds = perf_counter() - began
        return [int(i) for i in generator.get_sequence(0)[len(prompt) :]], seconds


def convert(checkpoint: Path, precision: str, workdir: Path) -> Path:
    """The checkpoint in GenAI's form, converted unless that was done before. Nothing is downloaded.

    Raises MissingBackend where the builder's own needs are not met, EECompileError with its last words if it fails.
    """
    absent = missing(["torch", "transformers", "onnx_ir"], "'eecompile[verify]' onnx-ir")
    folder = workdir / f"genai-{precision}-{_fingerprint(checkpoint)}"
    if folder.exists():
        return folder
    if absent:
        raise MissingBackend(f"converting a checkpoint for genai: {absent}")
    unfinished = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(unfinished),
        "-p", precision, "-e", "cpu", "-c", str(unfinished / "cache"), "--extra_options", *QUANTISATION,
    ]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EECompileError(f"onnxruntime-genai's model builder failed: {last[0][:300]}", where=str(checkpoint))
    shutil.rmtree(unfinished / "cache", ignore_errors=True)
    os.replace(unfinished, folder)
    return folder


def _fingerprint(checkpoint: Path) -> str:
    """Which checkpoint this is: its config, and name, size and time of its weights."""
    digest = hashlib.sha256((checkpoint / "config.json").read_bytes())
    for file in sorted(checkpoint.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
