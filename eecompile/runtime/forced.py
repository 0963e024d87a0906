"""The runtime over texts whose tokens are given: what a policy emits where its own choices do not count.

A trace (trace.py) tells that for catch_up without running any policy. With the other rules a token that leaves changes
what later ones see, so that every policy has to be run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from eecompile import contract as c
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.decode import Decoder
from eecompile.runtime.gates import ExitGates, GateState
from eecompile.runtime.request import Settings
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.staircase import Pool, Rows, Staircase

Ids = Sequence[int]


@dataclass
class Forced:
    """Of each token of a text from `first` on: what is emitted after it and after how many layers; and for each exit
    whether it was not asked or its cheap gate said go on ("."), its head said so ("h"), or it fired ("f")."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def run_forced(
    bundle: Bundle, settings: Settings, texts: Sequence[Ids], *, first: int | Sequence[int], slots: int = 1
) -> list[Forced]:
    """Run every text: `first` tokens as a prompt (one number for all, or one each), then one at a time; `slots` of them
    side by side.

    Raises NumericError where the logits are not finite.
    """
    found: list[Forced] = [Forced() for _ in texts]
    firsts = [first] * len(texts) if isinstance(first, int) else list(first)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]) - firsts[i])
    for start in range(0, len(order), slots):
        group = order[start : start + slots]
        _run_group(bundle, settings, [texts[i] for i in group], [found[i] for i in group], [firsts[i] for i in group])
    return found


def _run_group(
    bundle: Bundle, settings: Settings, texts: Sequence[Ids], found: Sequence[Forced], firsts: Sequence[int]
) -> None:
    manifest, size = bundle.manifest, len(texts)
    pool = Pool(manifest, bundle.graphs, size)
    those = []
    for ids, first in zip(texts, firsts, strict=True):
        stairs = Staircase(manifest, bundle.graphs, pool)
        stairs.prefill(list(ids[:first]))
        those.append(settings.continuation(stairs, Sampling()))
        those[-1].state.start(stairs.length)
    heads = bundle.heads(size)
    gates = _Listener(manifest.exits, bundle.askers(size), heads)
    decoder = Decoder(heads[c.FULL_HEAD], gates, layers=manifest.model.layers)
    rest = [ids[first:] for ids, first in zip(texts, firsts, strict=True)]
    for t in range(max(map(len, rest))):
        live = [i for i, ids in enumerate(rest) if t < len(ids)]
        for i in live:
            those[i].last = int(rest[i][t])
        gates.said = {id(those[i].state): ["."] * len(manifest.exits) for i in live}
        decoder.step([those[i] for i in live])
        for i in live:
            one, fault = those[i], those[i].fault
            if fault is not None:
                raise fault
            found[i].tokens.append(one.certain[0].id)
            found[i].depths.append(one.certain[0].depth)
            found[i].said.append("".join(gates.said[id(one.state)]))


class _Listener(ExitGates):
    """Exits that note what they said of each sequence's newest token, by the identity of its state."""

    said: Mapping[int, list[str]] = MappingProxyType({})

    def ask(
        self, exit_: int, rows: Rows, states: Sequence[GateState], slots: Sequence[int] = (0,)
    ) -> list[int | None]:  # fmt: skip
        """See ExitGates."""
        before = [state.declined.total() for state in states]
        tokens = super().ask(exit_, rows, states, slots)
        for state, count, token in zip(states, before, tokens, strict=True):
            declined = "h" if state.declined.total() > count else "."
            self.said[id(state)][exit_] = declined if token is None else "f"
        return tokens
