"""The bundle as a world to learn in: rollouts of its own runtime, priced and judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.source import first_tokens
from eecompile_training.policy.costs import Meter, Price, full_cost, rollout_cost
from eecompile_training.policy.gates import Gates, with_gates
from eecompile_training.policy.prompts import Prompt, Prompts, prompts_of_step
from eecompile_training.policy.ranks import Ranks
from eecompile_training.policy.records import Played, Rollout
from eecompile_training.policy.rewards import Quality
from eecompile_training.policy.rollouts import Roller, World
from eecompile_training.policy.states import gate_inputs_of


@dataclass(frozen=True)
class Judged:
    """How gates do as the rule that ships, which leaves where a gate is above one half: mean Q, C / C_full, layers run
    before a token was emitted, and share of tokens that left early."""

    quality: float
    cost: float
    depth: float
    exit_rate: float


class Environment(Protocol):
    """What a policy is trained in."""

    def play(self, step: int, gates: Gates) -> list[Played]:
        """This process's share of the rollouts of a step (from 0)."""

    def judge(self, gates: Gates) -> Judged:
        """How the gates do where they were not trained; the same in every process."""


@dataclass(frozen=True)
class Dealing:
    """How rollouts are dealt: prompts of a step, rollouts of each, slots, and the seed of it all."""

    prompts: int
    group: int
    slots: int
    seed: int


class BundleEnvironment:
    """A bundle's prompts. Not thread-safe; not changed by anything here."""

    def __init__(
        self, bundle: Bundle, world: World, prompts: Prompts, price: Price, quality: Quality, dealing: Dealing,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self._bundle, self._world, self._prompts = bundle, world, prompts
        self._price, self._quality, self._dealing, self._ranks = price, quality, dealing, ranks
        self._inputs = gate_inputs_of(bundle, world.exits)

    def play(self, step: int, gates: Gates) -> list[Played]:
        """See Environment. The coins of a rollout depend on seed, step, its prompt and its number alone."""
        dealing, roller = self._dealing, self._roller(gates)
        numbers = prompts_of_step(len(self._prompts.train), dealing.prompts, dealing.seed, step)
        found = []
        for place, number in self._ranks.deal(list(enumerate(numbers))):
            seeds = [(dealing.seed, step, place, i) for i in range(dealing.group)]
            prompt = self._prompts.train[number]
            found += [self._played(place, prompt, rollout) for rollout in roller.play(prompt.ids, seeds)]
        return found

    def judge(self, gates: Gates) -> Judged:
        """See Environment: by the validation prompts."""
        return self.judge_on(gates, self._prompts.validation)

    def judge_on(self, gates: Gates, prompts: Sequence[Prompt]) -> Judged:
        """As `judge`, by these prompts; each is continued by the deployed rule on its own tokens."""
        roller, depths = self._roller(gates), [info.layer for info in self._bundle.manifest.exits]
        rows = []
        for prompt in self._ranks.deal(list(prompts)):
            [rollout] = roller.play(prompt.ids, [()])
            if not rollout.walks:
                continue
            played = self._played(0, prompt, rollout)
            fired = [walk.fired for walk in rollout.walks]
            depth = [self._bundle.manifest.model.layers if f is None else depths[f] for f in fired]
            early = sum(f is not None for f in fired) / len(fired)
            rows.append((played.quality.sum(), played.cost.sum(), float(np.mean(depth)), early))
        means = np.mean(self._ranks.gather(rows) or [(0.0, 1.0, self._bundle.manifest.model.layers, 0.0)], axis=0)
        return Judged(*(float(value) for value in means))

    def in_world(self, world: World) -> "BundleEnvironment":
        """The same with other exits open, or other thresholds beside the learned ones."""
        return BundleEnvironment(
            self._bundle, world, self._prompts, self._price, self._quality, self._dealing, self._ranks
        )  # fmt: skip

    def _roller(self, gates: Gates) -> Roller:
        return Roller(with_gates(self._bundle, gates.weights()), self._world, self._dealing.slots)

    def _played(self, group: int, prompt: Prompt, rollout: Rollout) -> Played:
        manifest, found = self._bundle.manifest, rollout.decisions
        first = first_tokens(manifest, len(prompt.ids))
        meter = Meter(manifest, self._price, length=first, cap=self._world.cap, kv=self._world.kv)
        costs = rollout_cost(meter, rollout.walks, ended=rollout.ended)
        whole = full_cost(meter, first, len(costs)) or 1.0
        state = np.zeros_like(found.rows)
        for exit_, inputs in self._inputs.items():
            own = found.exit == exit_
            state[own] = inputs(found.rows[own])
        sunk = [costs[t].sunk[place] for t, place in zip(found.token, found.place, strict=True)]
        return Played(
            group, self._quality(prompt, rollout), np.array([cost.total for cost in costs]) / whole, found.token,
            found.exit, found.leave, state, np.array(sunk) / whole,
        )  # fmt: skip
