"""llama.cpp through llama-cpp-python, on a GGUF file that is given."""

from collections.abc import Sequence
from importlib.metadata import version
from time import perf_counter
from typing import Any

from eecompile.bench.peers.base import Facts, PeerSetup, missing
from eecompile.errors import UsageError


class LlamaCpp:
    """See Peer."""

    def __init__(self) -> None:
        self._model: Any = None

    def available(self) -> str | None:
        """See Peer."""
        return missing(["llama_cpp"], "llama-cpp-python")

    def prepare(self, setup: PeerSetup) -> Facts:
        """See Peer. The precision is the file's, whatever the bundle's."""
        if setup.gguf is None or not setup.gguf.exists():
            raise UsageError("llama.cpp needs a GGUF file of this model: --gguf FILE")
        from llama_cpp import Llama

        self._model = Llama(
            str(setup.gguf), n_ctx=setup.context, n_threads=setup.threads, n_threads_batch=setup.threads, verbose=False
        )
        release = f"llama-cpp-python {version('llama-cpp-python')}"
        precision = _file_type(setup.gguf.name, self._model.metadata.get("general.file_type"))
        return {"precision": precision, "threads": setup.threads, "version": release, "note": setup.gguf.name[:200]}

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """See Peer."""
        ids: list[int] = []
        began = perf_counter()
        for token in self._model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            ids.append(int(token))
            if len(ids) == 1:
                began = perf_counter()
            if len(ids) == tokens:
                break
        return ids, perf_counter() - began


def _file_type(name: str, number: str | None) -> str:
    """GGUF's general.file_type, by the number that llama.cpp gives it."""
    known = {"0": "F32", "1": "F16", "2": "Q4_0", "3": "Q4_1", "7": "Q8_0", "15": "Q4_K_M", "32": "BF16"}
    return known.get(number or "", f"GGUF file type {number or 'unknown'}")
