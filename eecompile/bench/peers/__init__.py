"""Other runtimes to compare with, each behind one small interface and, in a bench, in a process of its own."""

from collections.abc import Mapping
from typing import Final

from eecompile.bench.peers.base import Facts, Peer, PeerSetup
from eecompile.bench.peers.genai import GenAI
from eecompile.bench.peers.llamacpp import LlamaCpp
from eecompile.bench.peers.transformers import Transformers

PEERS: Final[Mapping[str, type[Peer]]] = {"genai": GenAI, "transformers": Transformers, "llama.cpp": LlamaCpp}

__all__ = ["PEERS", "Facts", "Peer", "PeerSetup"]
