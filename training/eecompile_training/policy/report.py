"""How tuned gates do on held-out prompts: as the rule that ships, and against the best fixed threshold of the bundle's
own gates."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eecompile.runtime.bundle import Bundle
from eecompile_training.policy.costs import Price
from eecompile_training.policy.curves import LEVELS, Tried, cheapest, compared, front, plot_curves, sweep
from eecompile_training.policy.environment import BundleEnvironment, Judged
from eecompile_training.policy.forced import Replay, Rule, Text, read_texts
from eecompile_training.policy.gates import Gates, gates_of_bundle, shifted
from eecompile_training.policy.prompts import Prompt
from eecompile_training.policy.records import Float
from eecompile_training.policy.rollouts import World

_RULE = 0.5


def evaluate(
    picture: Path, bundle: Bundle, world: World, prompts: Sequence[Prompt], price: Price,
    environment: BundleEnvironment, gates: Gates,
) -> dict[str, Any]:  # fmt: skip
    """What evaluation.json says; `picture` becomes the PNG of both curves.

    ships: the gates above one half, on the full model's continuations. best_fixed: the cheapest fixed threshold that
    agrees as much; gain: its cost over that of `ships` (None: no fixed threshold agrees as much but full depth, which
    `gain` is then over). at: both curves at some agreements. played: `ships` and `best_fixed` run by the runtime on
    their own tokens. curves: both fronts.
    """
    texts = read_texts(bundle, world, prompts)
    replay, confidences = Replay(bundle, world, price, texts), [confidence_of(gates, text) for text in texts]
    rule = Rule(world.exits, _RULE, world.others)
    ships = Tried(rule, replay.point(rule, confidences))
    fixed = sweep(bundle.manifest, world, replay, [text.confidence for text in texts], own=True)
    tuned = [*sweep(bundle.manifest, world, replay, confidences, own=False), ships]
    rival = cheapest(fixed, ships.point.agreement)
    report = {
        "prompts": len(texts), "tokens": sum(len(text.final) for text in texts), "kv": world.kv,
        "exits": [bundle.manifest.exits[i].layer for i in world.exits],
        "ships": ships.describe(), "best_fixed": None if rival is None else rival.describe(),
        "gain": (1.0 if rival is None else min(1.0, rival.point.cost)) / ships.point.cost,
        "at": compared(fixed, tuned, LEVELS),
        "played": {
            "ships": asdict(environment.judge_on(gates, prompts)),
            "best_fixed": None if rival is None else asdict(_played(bundle, world, environment, prompts, rival)),
        },
        "curves": {name: [t.describe() for t in front(tried)] for name, tried in (("fixed", fixed), ("tuned", tuned))},
    }  # fmt: skip
    plot_curves(picture, fixed, tuned, ships.point)
    return report


def confidence_of(gates: Gates, text: Text) -> dict[int, Float]:
    """What the gates say of a text [T], by exit, as float32 gates do."""
    with torch.no_grad():
        logits = {g: gates.logits(g, torch.from_numpy(text.state[g].astype(np.float64))) for g in gates.exits}
        return {g: torch.sigmoid(values).numpy().astype(np.float32) for g, values in logits.items()}


def _played(
    bundle: Bundle, world: World, environment: BundleEnvironment, prompts: Sequence[Prompt], rival: Tried
) -> Judged:  # fmt: skip
    """The rival run by the runtime: the bundle's gates moved so that its threshold is one half."""
    own = replace(world, exits=rival.rule.exits, others=rival.rule.others)
    gates = gates_of_bundle(bundle, own.exits)
    moved = shifted(gates, dict.fromkeys(own.exits, rival.rule.learned))
    return environment.in_world(own).judge_on(moved, prompts)
