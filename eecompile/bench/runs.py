"""Who competes in a bench, and the rounds: every contender runs every prompt in turn, A B C A B C, so that what slows
the machine for a while slows all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from eecompile.bench.timing import PassLog, PassRecord, timed_bundle
from eecompile.bench.uncut import UncutModel
from eecompile.errors import EECompileError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.session import Stats

Ids = list[int]


@dataclass(frozen=True)
class Run:
    """One prompt continued: the new token ids and the seconds after the first. Our own contenders add the decoding
    passes, the layers run before each token was emitted, and the request's stats."""

    ids: Ids
    seconds: float
    passes: list[PassRecord] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)


class Contender(Protocol):
    """Continues prompts greedily by a fixed number of tokens; end-of-sequence tokens do not stop it."""

    def run(self, prompt: Ids, tokens: int) -> Run:
        """Continue `prompt` by `tokens` tokens."""


class PeerFailed(EECompileError):
    """A peer ended or gave an error; the bench goes on without it."""


class ModeContender:
    """A session of the bundle in one mode."""

    def __init__(self, bundle: Bundle, mode: str) -> None:
        self._log = PassLog()
        self._session = timed_bundle(bundle, self._log).session(mode=mode)

    def run(self, prompt: Ids, tokens: int) -> Run:
        """See Contender. Fewer tokens where the policy's budget ends the request."""
        generation = self._session.generate(prompt, max_new_tokens=tokens, stop=())
        emitted = [next(generation)]
        self._log.take()
        emitted.extend(generation)
        depths = [token.exit_layer for token in emitted]
        return Run(generation.ids, generation.stats.decode_seconds, self._log.take(), depths, generation.stats)


class UncutContender:
    """The uncut graph."""

    def __init__(self, bundle: Bundle) -> None:
        self._model = UncutModel(bundle, PassLog())

    def run(self, prompt: Ids, tokens: int) -> Run:
        """See Contender."""
        return Run(*self._model.generate(prompt, tokens))


@dataclass
class Rounds:
    """What ran: `runs[name][round][prompt]`; `failed` has the reason for each peer that did not last."""

    runs: dict[str, list[list[Run]]]
    failed: dict[str, str]


def alternate(
    contenders: dict[str, Contender], prompts: Sequence[Ids], tokens: int, rounds: int, progress: Callable[[str], None]
) -> Rounds:
    """Run every prompt `rounds` times with every contender, the contenders taking turns at each prompt."""
    found = Rounds({name: [[] for _ in range(rounds)] for name in contenders}, {})
    for i in range(rounds):
        for j, prompt in enumerate(prompts):
            progress(f"round {i + 1} of {rounds}, prompt {j + 1} of {len(prompts)}")
            for name in [name for name in contenders if name not in found.failed]:
                try:
                    found.runs[name][i].append(contenders[name].run(prompt, tokens))
                except PeerFailed as e:
                    found.failed[name] = e.what
    found.runs = {name: runs for name, runs in found.runs.items() if name not in found.failed}
    return found
