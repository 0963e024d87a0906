"""The child of PeerProcess: prepares one peer, then answers a JSON line with a JSON line until its input ends.

python -m eecompile.bench.peers.worker NAME
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from eecompile.bench.peers import PEERS
from eecompile.bench.peers.base import Peer, PeerSetup
from eecompile.errors import EECompileError


def serve(peer: Peer, requests: TextIO, answers: TextIO) -> None:
    """First a PeerSetup, answered by the peer's Facts; then {"prompt", "tokens"}, answered by {"ids", "seconds"}."""

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        answer(peer.prepare(_setup(json.loads(requests.readline()))))
        for line in requests:
            request = json.loads(line)
            ids, seconds = peer.generate(request["prompt"], request["tokens"])
            answer({"ids": ids, "seconds": seconds})
    except EECompileError as e:
        answer({"error": e.what})
    except Exception as e:  # whatever a foreign library raises is a reason to go on without it
        answer({"error": f"{type(e).__name__}: {str(e)[:300]}"})


def _setup(fields: dict[str, Any]) -> PeerSetup:
    paths = {key: None if fields[key] is None else Path(fields[key]) for key in ("checkpoint", "gguf", "workdir")}
    return PeerSetup(**{**fields, **paths})


def main() -> None:
    """Serve the peer named on the command line. What libraries print to stdout goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(PEERS[sys.argv[1]](), sys.stdin, answers)


if __name__ == "__main__":
    main()
