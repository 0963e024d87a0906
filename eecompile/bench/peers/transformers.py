"""Hugging Face transformers: PyTorch in float32, eager, with its own cache; a plain greedy loop around it."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from eecompile.bench.peers.base import Facts, PeerSetup, missing, need_checkpoint


class Transformers:
    """See Peer."""

    def __init__(self) -> None:
        self._model: Any = None

    def available(self) -> str | None:
        """See Peer."""
        return missing(["torch", "transformers"], "'eecompile[verify]'")

    def prepare(self, setup: PeerSetup) -> Facts:
        """See Peer. Nothing is downloaded."""
        checkpoint = need_checkpoint(setup, "transformers")
        import torch
        import transformers

        torch.set_num_threads(setup.threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(checkpoint, dtype=torch.float32, local_files_only=True).eval()
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"precision": "fp32", "threads": setup.threads, "version": version, "note": "eager PyTorch"}

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """See Peer. The loop skips what `generate` adds to every token, which is to this peer's advantage."""
        import torch

        ids: list[int] = []
        with torch.inference_mode():
            step, cache, began = torch.tensor([list(prompt)]), None, perf_counter()
            while len(ids) < tokens:
                out = self._model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                step, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                ids.append(int(step))
                if len(ids) == 1:
                    began = perf_counter()
        return ids, perf_counter() - began
