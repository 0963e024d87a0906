"""One update of the gates from a batch of rollouts: several epochs over it, in minibatches of whole groups."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from eecompile_training.policy.advantage import Scaling, advantages, scales
from eecompile_training.policy.gates import Gates, Reference, action_log_prob
from eecompile_training.policy.loss import entropy, policy_loss
from eecompile_training.policy.ranks import Ranks, flat_gradients, put_gradients
from eecompile_training.policy.records import Bools, Double, Float, Played


@dataclass(frozen=True)
class Rules:
    """How gates learn. rate: Adam's. clip, beta: see loss.py. bonus: weight of the entropy, which keeps coins from
    settling. norm: gradients are cut to this one. epochs over a batch, each in so many minibatches."""

    rate: float
    clip: float
    beta: float
    bonus: float
    norm: float
    epochs: int
    minibatches: int
    scaling: Scaling
    seed: int


@dataclass(frozen=True)
class _Part:
    """The decisions of one group at one exit, and what does not change over the epochs."""

    group: int
    exit: int
    states: Tensor
    leave: Tensor
    advantage: Tensor
    old: Tensor
    reference: Tensor


def _key(item: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return item[0]


class Learner:
    """Gates, the policy that they are held to, and an optimiser. Every process has the same one."""

    def __init__(self, gates: Gates, reference: Reference, rules: Rules, ranks: Ranks) -> None:
        self.gates, self.optimiser = gates, torch.optim.Adam(gates.parameters(), lr=rules.rate)
        self._reference, self._rules, self._ranks = reference, rules, ranks
        self._parameters = list(gates.parameters())

    def learn(self, step: int, played: Sequence[Played], weight: float) -> dict[str, float]:
        """Update the gates by this process's share of a batch. weight: of costs. Returns what the update came to:
        loss, kl (to the reference), entropy, clipped (share of decisions), decisions, skipped (share of groups)."""
        rewards = sorted(self._ranks.gather([(one.group, one.reward(weight)) for one in played]), key=itemgetter(0))
        scale, groups = scales(rewards, self._rules.scaling), sorted({group for group, _ in rewards})
        parts = self._parts(played, weight, scale)
        sums = torch.zeros(5, dtype=torch.float64)
        for epoch in range(self._rules.epochs):
            order = np.random.default_rng([self._rules.seed, step, epoch]).permutation(groups)
            for chosen in np.array_split(order, min(self._rules.minibatches, max(1, len(groups)))):
                sums += self._minibatch([part for part in parts if part.group in chosen])
        names = ("loss", "kl", "entropy", "clipped")
        found = {name: float(total / max(1.0, sums[4])) for name, total in zip(names, sums, strict=False)}
        skipped = 1 - len(scale) / len(groups) if groups else 1.0
        return {**found, "decisions": float(sums[4]) / self._rules.epochs, "skipped": skipped}

    def _parts(self, played: Sequence[Played], weight: float, scale: dict[int, float]) -> list[_Part]:
        found = defaultdict[tuple[int, int], list[tuple[Float, Bools, Double]]](list)
        for one, advantage in zip(played, advantages(played, weight, scale), strict=True):
            for exit_ in self.gates.exits if advantage is not None else ():
                own = one.exit == exit_
                if own.any() and advantage is not None:
                    found[one.group, exit_].append((one.state[own], one.leave[own], advantage[own]))
        return [self._part(group, exit_, decided) for (group, exit_), decided in sorted(found.items(), key=_key)]

    def _part(self, group: int, exit_: int, decided: Sequence[tuple[Float, Bools, Double]]) -> _Part:
        state, leave, advantage = (torch.from_numpy(np.concatenate(column)) for column in zip(*decided, strict=True))
        states = state.double()
        with torch.no_grad():
            old = action_log_prob(self.gates.logits(exit_, states), leave)
        return _Part(group, exit_, states, leave, advantage, old, self._reference.log_prob(exit_, states, leave))

    def _minibatch(self, parts: Sequence[_Part]) -> Tensor:
        """One step of the optimiser; the sums over the decisions of all processes of loss, KL, entropy, whether it was
        clipped, and 1."""
        sums = torch.zeros(5, dtype=torch.float64)
        self.optimiser.zero_grad()
        for part in parts:
            logits = self.gates.logits(part.exit, part.states)
            new = action_log_prob(logits, part.leave)
            spread = entropy(logits)
            rules = self._rules
            losses = policy_loss(new, part.old, part.reference, part.advantage, clip=rules.clip, beta=rules.beta)
            total = (losses - rules.bonus * spread).sum()
            total.backward()
            with torch.no_grad():
                gap = part.reference - new
                clipped = (torch.exp(new - part.old) - 1).abs() > rules.clip
                terms = (total, (torch.exp(gap) - gap - 1).sum(), spread.sum(), clipped.sum(), len(new))
                sums += torch.tensor([float(term) for term in terms], dtype=torch.float64)
        self._step(sums)
        return sums

    def _step(self, sums: Tensor) -> None:
        """Sum gradients and `sums` over the processes and move along the mean gradient."""
        flat = self._ranks.total(torch.cat([flat_gradients(self._parameters), sums]))
        sums.copy_(flat[-len(sums) :])
        if sums[-1]:
            put_gradients(self._parameters, flat[: -len(sums)] / sums[-1])
            torch.nn.utils.clip_grad_norm_(self._parameters, self._rules.norm)
            self.optimiser.step()
