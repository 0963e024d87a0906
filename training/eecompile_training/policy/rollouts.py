"""Rollouts: the bundle's own runtime continues a prompt several times, its gates tossing coins.

The decoder, the staircase and the K/V rule are those of a deployment; what a sequence emits does not depend on who
shares its passes, so that slots change the speed and nothing else. A prompt is read once: a rollout begins where the
one before it is rewound to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.bundle.ranges import BELOW, criterion_range
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.request import Limits, Settings
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.source import first_tokens
from eecompile.runtime.staircase import Pool, Staircase
from eecompile.schema import Criterion, Thresholds
from eecompile_training.policy.acting import ActingGates, Diary
from eecompile_training.policy.records import Rollout

Others = Mapping[Criterion, float]


@dataclass(frozen=True)
class World:
    """What gates act in. exits: those that are trained; all others stay closed. kv, cap: the rule for skipped layers,
    tokens that may wait. others: thresholds of the gates that an exit has beside its learned one, wide open where not
    named. tokens: new ones a rollout, the prompt's own first one not counted."""

    exits: Sequence[int]
    kv: str
    cap: int
    tokens: int
    others: Others = field(default_factory=dict)

    def thresholds(self, manifest: Manifest, exit_: int, learned: float | None) -> Thresholds:
        """All thresholds of an exit, for its learned gate this one (None: none, a coin decides)."""
        gates = [gate for gate in manifest.exits[exit_].gates if gate != "learned"]
        found: Thresholds = {gate: self.threshold(manifest, gate) for gate in gates}
        return found if learned is None else {**found, "learned": learned}

    def threshold(self, manifest: Manifest, gate: Criterion, others: Others | None = None) -> float:
        """That of a gate beside the learned one. others: in place of this world's."""
        named = self.others if others is None else others
        if gate in named:
            return named[gate]
        low, high = criterion_range(gate, manifest.classes)
        return high if gate in BELOW else low

    def settings(self, manifest: Manifest, learned: float | None) -> Settings:
        """How requests run in this world."""
        rules: list[ExitRule | None] = [None] * len(manifest.exits)
        for i in self.exits:
            info = manifest.exits[i]
            rules[i] = ExitRule.of(i, info.layer, self.thresholds(manifest, i, learned), info.schedule)
        return Settings("confident", rules, Limits(cap=self.cap), manifest.exits, self.kv)


class Roller:
    """Plays prompts on an open bundle, whose policy has the gates. Not thread-safe."""

    def __init__(self, bundle: Bundle, world: World, slots: int = 1) -> None:
        manifest, self._bundle, self._world = bundle.manifest, bundle, world
        attends = any(manifest.exits[i].adapter == "layer" for i in world.exits)
        self._slots = 1 if attends else min(slots, manifest.slots)  # a layer of an exit's own attends to one sequence
        self._askers, heads = bundle.askers(self._slots), bundle.heads(self._slots)
        self._gates = ActingGates(manifest.exits, self._askers, heads)
        self._decoder = Decoder(heads[c.FULL_HEAD], self._gates, layers=manifest.model.layers)
        self._settings = world.settings(manifest, None)
        self._layers = [info.layer for info in manifest.exits]

    def play(self, prompt: Sequence[int], seeds: Sequence[Sequence[int]]) -> list[Rollout]:
        """One rollout for each seed; where that is empty, by the rule that ships: above one half.

        Raises UsageError where they do not fit the context, NumericError where logits are not finite.
        """
        self._check_room(prompt)
        manifest, width = self._bundle.manifest, min(self._slots, len(seeds))
        pool = Pool(manifest, self._bundle.graphs, width)
        stairs = [Staircase(manifest, self._bundle.graphs, pool) for _ in range(width)]
        for one in stairs:
            self._read(one, list(prompt))
        start, first, found = stairs[0].length, self._first(stairs[0]), list[Rollout]()
        for wave in range(0, len(seeds), width):
            those = stairs[: len(seeds) - wave]
            for one in those:
                one.rewind(start)
            found += self._wave(those, prompt, first, seeds[wave : wave + width])
        return found

    def _read(self, one: Staircase, prompt: list[int]) -> None:
        one.watch(self._askers, self._world.exits)
        for watcher in one.watchers.values():
            watcher.leave(one.slot)
        one.prefill(one.pool.take_up(prompt))

    def _first(self, one: Staircase) -> int:
        """The token that follows the prompt, from full depth."""
        sequence = self._settings.continuation(one, Sampling())
        self._decoder.start([sequence])
        if sequence.fault is not None:
            raise sequence.fault
        return sequence.last

    def _wave(
        self, stairs: Sequence[Staircase], prompt: Sequence[int], first: int, seeds: Sequence[Sequence[int]]
    ) -> list[Rollout]:
        manifest, ends = self._bundle.manifest, set(self._bundle.manifest.model.eos)
        those = [self._settings.continuation(one, Sampling()) for one in stairs]
        diaries = [Diary(_coin(seed)) for seed in seeds]
        self._gates.diaries = {id(one.state): diary for one, diary in zip(those, diaries, strict=True)}
        ids = [[first] for _ in those]
        for one in those:
            one.state.start(one.stairs.length)
            one.last = first
        for _ in range(self._world.tokens):
            live = [i for i in range(len(those)) if ids[i][-1] not in ends]
            if not live:
                break
            self._decoder.step([those[i] for i in live])
            for i in live:
                ids[i].append(self._emitted(those[i], diaries[i]))
        return [
            Rollout(prompt, ids[i], diaries[i].walks, diaries[i].decisions(manifest.model.hidden), ids[i][-1] in ends)
            for i in range(len(those))
        ]

    def _emitted(self, one: Continuation, diary: Diary) -> int:
        if one.fault is not None:
            raise one.fault
        token = one.certain[0]
        diary.emitted(token, self._layers)
        return token.id

    def _check_room(self, prompt: Sequence[int]) -> None:
        manifest = self._bundle.manifest
        needed = first_tokens(manifest, len(prompt)) + self._world.tokens
        if needed > manifest.model.context or not prompt:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and {self._world.tokens} new ones do not fit the context of "
                f"{manifest.model.context}", where="tokens", mend="shorter prompts or fewer new tokens",
            )  # fmt: skip


def _coin(seed: Sequence[int]) -> Callable[[], float]:
    return np.random.default_rng(list(seed)).random if seed else lambda: 0.5
