"""The gates that are tuned: the bundle's own learned gates as a torch module, in float64, and back.

A gate is sigmoid(tanh(n W1 + b1) W2 + b2) of the state n. Training holds it in float64, so that sums over processes and
minibatches do not depend on their order to any digit that float32, which ships, could show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from eecompile.bundle.gates import GateArrays, decode_gate, encode_gate
from eecompile.bundle.manifest import GateWeights
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle

MEND = "make one with `eecompile exits --gates learned,max_prob`, or train it (docs/TRAINING.md), and build again"
_PARTS = ("w1", "b1", "w2", "b2")


class Gates(nn.Module):
    """The gates of the exits that are trained, by exit. Float64."""

    def __init__(self, arrays: Mapping[int, GateArrays]) -> None:
        super().__init__()
        self.exits = sorted(arrays)
        for exit_ in self.exits:
            for part in _PARTS:
                values = torch.from_numpy(np.asarray(arrays[exit_][part], np.float64).copy())
                self.register_parameter(f"{part}_{exit_}", nn.Parameter(values))

    def part(self, name: str, exit_: int) -> Tensor:
        """One tensor of one gate; `name` is w1, b1, w2 or b2."""
        return self.get_parameter(f"{name}_{exit_}")

    def logits(self, exit_: int, states: Tensor) -> Tensor:
        """The logit of leaving [N] at states [N, D]."""
        inner = torch.tanh(states @ self.part("w1", exit_) + self.part("b1", exit_))
        return (inner @ self.part("w2", exit_) + self.part("b2", exit_))[:, 0]

    def weights(self) -> dict[int, GateWeights]:
        """The gates as a policy has them, float32, by exit."""
        return {
            exit_: encode_gate(*(self.part(p, exit_).detach().numpy().astype(np.float32) for p in _PARTS))
            for exit_ in self.exits
        }


def gates_of_bundle(bundle: Bundle, exits: Sequence[int]) -> Gates:
    """The gates that the bundle's policy has for these exits. Raises UsageError where one has none."""
    manifest, policy = bundle.manifest, bundle.files.policy
    found = dict[int, GateArrays]()
    for exit_ in exits:
        chosen = policy.exits[exit_].gate
        if chosen is None:
            raise UsageError(
                f"the exit after layer {manifest.exits[exit_].layer} has no learned gate to tune",
                where=str(bundle.files.path), mend=MEND,
            )  # fmt: skip
        found[exit_] = decode_gate(chosen, manifest.model.hidden)
    return Gates(found)


def trained_exits(bundle: Bundle, layers: Sequence[int]) -> list[int]:
    """The exits after these layers (none given: all that have a learned gate). Raises UsageError where one is missing
    or has no learned gate, whose weights a bundle without them cannot get."""
    exits = {info.layer: i for i, info in enumerate(bundle.manifest.exits)}
    if unknown := sorted(set(layers) - set(exits)):
        raise UsageError(f"there is no exit after layer {unknown[0]}", where="exits", mend=f"exits: {sorted(exits)}")
    learned = [i for i, info in enumerate(bundle.manifest.exits) if "learned" in info.gates]
    chosen = [exits[layer] for layer in sorted(layers)] or learned
    if not chosen or (lacking := [i for i in chosen if i not in learned]):
        named = f"the exit after layer {bundle.manifest.exits[lacking[0]].layer} has" if chosen else "its exits have"
        raise UsageError(f"{named} no learned gate to tune", where=str(bundle.files.path), mend=MEND)
    return chosen


def shifted(gates: Gates, thresholds: Mapping[int, float]) -> Gates:
    """The same gates moved so that each gives one half where it gave its threshold: sampled from or compared with one
    half, they are the threshold policy softened."""
    with torch.no_grad():
        for exit_ in gates.exits:
            tau = min(max(thresholds[exit_], 1e-6), 1 - 1e-6)
            gates.part("b2", exit_).sub_(math.log(tau / (1 - tau)))
    return gates


def with_gates(bundle: Bundle, weights: Mapping[int, GateWeights]) -> Bundle:
    """The open bundle with other gate weights, by exit; nothing is written. Its confident exits are closed."""
    policy = bundle.files.policy
    exits = [
        e.model_copy(update={"gate": weights.get(i, e.gate), "confident": None}) for i, e in enumerate(policy.exits)
    ]
    files = replace(bundle.files, policy=policy.model_copy(update={"exits": exits}))
    return replace(bundle, files=files)


class Reference:
    """The calibrated threshold policy, softened: it leaves with probability sigmoid((c - tau) / T), c the confidence
    that the bundle's own gates give, tau each exit's threshold, T the temperature (METHODS.md 5)."""

    def __init__(self, gates: Gates, thresholds: Mapping[int, float], temperature: float) -> None:
        self._gates, self._thresholds, self._temperature = gates, dict(thresholds), temperature

    def log_prob(self, exit_: int, states: Tensor, leave: Tensor) -> Tensor:
        """The log-probability [N] of what was chosen at states [N, D]."""
        with torch.no_grad():
            confidence = torch.sigmoid(self._gates.logits(exit_, states))
            return action_log_prob((confidence - self._thresholds[exit_]) / self._temperature, leave)


def action_log_prob(logits: Tensor, leave: Tensor) -> Tensor:
    """log of the probability of what was chosen: sigmoid of the logit to leave, of its negative to go on."""
    return logsigmoid(torch.where(leave, logits, -logits))
