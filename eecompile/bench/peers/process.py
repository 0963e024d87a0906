"""A peer in a process of its own: its threads and memory stay out of ours, and between requests it waits on a pipe."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from eecompile.bench.peers.base import Facts, PeerSetup
from eecompile.bench.runs import Ids, PeerFailed, Run

QUIT_SECONDS = 10
ANSWER_SECONDS = 900  # a peer that converts a model first is slow; one that says nothing for so long hangs


class PeerProcess:
    """A contender whose runs happen in a child process, asked over JSON lines. Not thread-safe; use in `with`.

    `facts` says what it runs. command: of the child, by default worker.py for the peer `name`. patience: seconds until
    a silent child is ended. Raises PeerFailed where the peer cannot be prepared.
    """

    def __init__(
        self, name: str, setup: PeerSetup, command: Sequence[str] = (), *, patience: float = ANSWER_SECONDS
    ) -> None:
        self.name, self._patience, self._hung = name, patience, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "eecompile.bench.peers.worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        paths = {
            key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(setup).items()
        }
        try:
            self.facts: Facts = self._ask(paths)
        except BaseException:
            self.close()
            raise

    def run(self, prompt: Ids, tokens: int) -> Run:
        """See Contender. Raises PeerFailed."""
        answer = self._ask({"prompt": prompt, "tokens": tokens})
        if len(answer["ids"]) != tokens:
            raise PeerFailed(f"{self.name} gave {len(answer['ids'])} tokens instead of {tokens}")
        return Run(answer["ids"], answer["seconds"])

    def close(self) -> None:
        """End the child."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        watch = threading.Timer(self._patience, self._give_up)
        watch.start()
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if self._hung:
            raise PeerFailed(f"{self.name} did not answer within {self._patience:g} seconds")
        if not line:
            raise PeerFailed(f"{self.name} ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(str(answer["error"]))
        return answer

    def _give_up(self) -> None:
        self._hung = True
        self._process.kill()

    def _last_words(self) -> str:
        """The last line that the child wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"
