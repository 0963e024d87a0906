"""`train policy`, from a config to tuned gates and a report: the stages in order.

The run's folder then has gates.json, which `eecompile policy BUNDLE set --gates` loads; evaluation.json and curves.png
have how they do on held-out prompts beside the best fixed threshold.
"""

import json
from pathlib import Path
from typing import Any

import torch

from eecompile import contract as c
from eecompile.bench.profile import device_name
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.ranges import calibrated_thresholds, matching_calibrations
from eecompile.bundle.tuned import TunedGate, TunedGates
from eecompile.calibrate.records import data_digest
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile_training.config import load_config
from eecompile_training.plots import plot_run
from eecompile_training.policy.costs import Price, price_from_bytes, price_from_profile
from eecompile_training.policy.environment import BundleEnvironment, Dealing
from eecompile_training.policy.gates import Gates, Reference, gates_of_bundle, shifted, trained_exits
from eecompile_training.policy.learner import Learner, Rules
from eecompile_training.policy.loop import Loop, Outcome, Progress
from eecompile_training.policy.prompts import Prompts, load_prompts
from eecompile_training.policy.ranks import Ranks, joined_ranks
from eecompile_training.policy.report import evaluate
from eecompile_training.policy.rewards import quality_of
from eecompile_training.policy.rollouts import World
from eecompile_training.policy.settings import PolicyConfig
from eecompile_training.runs import Run, open_run

GATES = "gates.json"
SHIPS = 0.5  # a gate leaves above this


def train_file(path: Path, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train by the config in a YAML file; returns a summary, in the first process only.

    Raises UsageError for configs, bundles and documents that cannot be trained with, as everything in here does.
    """
    torch.set_num_threads(1)  # gates are small; a second thread would fight with the runtime's
    with joined_ranks() as ranks:
        return train_policy(load_config(path, PolicyConfig), ranks, resume=resume, progress=progress)


def train_policy(
    config: PolicyConfig, ranks: Ranks, *, resume: bool = False, progress: Progress = lambda stage: None
) -> dict[str, Any]:  # fmt: skip
    """As `train_file`."""
    bundle = Bundle.open(config.bundle, threads=config.threads, integrity="size")
    world = world_of(config, bundle)
    prompts, price = load_prompts(config.data, bundle, world.tokens), price_of(config, bundle)
    run = _open(config, bundle, ranks, resume)
    thresholds = reference_thresholds(config, bundle, world)
    own = gates_of_bundle(bundle, world.exits)
    gates = gates_of_bundle(bundle, world.exits)
    start = shifted(gates, thresholds) if config.start == "reference" else gates
    learner = Learner(start, Reference(own, thresholds, config.reference.temperature), _rules(config), ranks)
    dealing = Dealing(config.rollouts.prompts, config.rollouts.group, config.rollouts.slots, config.seed)
    quality = quality_of(config.reward.quality, bundle)
    environment = BundleEnvironment(bundle, world, prompts, price, quality, dealing, ranks)
    outcome = Loop(config, learner, environment, run, ranks).train(progress)
    if not ranks.first:
        return {}
    alone = BundleEnvironment(bundle, world, prompts, price, quality, dealing, Ranks())
    return _finish(run, config, bundle, world, prompts, price, alone, outcome, progress)


def world_of(config: PolicyConfig, bundle: Bundle) -> World:
    """What the gates act in. Raises UsageError where the bundle is none to train on, or the config asks for what it
    lacks."""
    manifest, where = bundle.manifest, str(bundle.files.path)
    if manifest.task != c.CAUSAL_LM:
        raise UsageError("the bundle classifies texts: its exits have no learned gates", where=where)
    kv, cap = config.kv or bundle.files.policy.kv, config.pending_cap or manifest.pending_cap
    if kv not in manifest.kv_rules:
        raise UsageError(f"the bundle has no graphs for {kv}", where="kv", mend=f"build with --kv catch_up,{kv}")
    if cap > manifest.pending_cap:
        raise UsageError(f"{cap} is above the bundle's pending cap of {manifest.pending_cap}", where="pending_cap")
    depth = max(config.guards.minimum_depth, bundle.files.policy.minimum_depth)
    exits = [i for i in trained_exits(bundle, config.exits) if manifest.exits[i].layer >= depth]
    if not exits:
        raise UsageError(f"no exit is left after a minimum depth of {depth}", where="guards.minimum_depth")
    if unknown := sorted(set(config.others) - set(c.HEAD_CRITERIA)):
        raise UsageError(f"{unknown[0]} is no gate of a head", where="others", mend=f"gates: {c.HEAD_CRITERIA}")
    if any(manifest.exits[i].schedule is not None for i in exits):
        mend = "tune exits without one (`exits`), or make them without: `eecompile exits --schedule none`"
        raise UsageError(
            "an exit has a schedule, which moves thresholds while a text is written", where=where, mend=mend
        )
    return World(exits, kv, cap, config.rollouts.tokens, config.others)


def price_of(config: PolicyConfig, bundle: Bundle) -> Price:
    """What passes cost: this device's profile where the bundle has several. Raises UsageError where one is wanted and
    there is none."""
    profiles, here = bundle.files.profiles, device_name()
    if config.reward.costs == "bytes" or (config.reward.costs == "auto" and not profiles):
        return price_from_bytes(bundle.manifest)
    if not profiles:
        mend = "measure it first: `eecompile profile BUNDLE`"
        raise UsageError("the bundle has no profile", where=str(bundle.files.path), mend=mend)
    return price_from_profile(next((p for p in profiles if p.device == here), profiles[0]))


def reference_thresholds(config: PolicyConfig, bundle: Bundle, world: World) -> dict[int, float]:
    """The threshold of each trained exit's gate: the config's, the calibrated, the drafts', one half. One that every
    token passes, as calibration gives it where another gate decides, is none: coins would all fall alike."""
    manifest, policy = bundle.manifest, bundle.files.policy
    matching = matching_calibrations(manifest, policy, bundle.files.calibrations, world.kv)
    calibrated = calibrated_thresholds(matching[0]) if matching else [None] * len(manifest.exits)
    found = dict[int, float]()
    for i in world.exits:
        known = [(calibrated[i] or {}).get("learned"), (policy.exits[i].draft or {}).get("learned"), SHIPS]
        own = config.reference.thresholds.get(manifest.exits[i].layer)
        found[i] = next(t for t in (own, *known) if t is not None and 0 < t < 1)
    return found


def _rules(config: PolicyConfig) -> Rules:
    update = config.update
    return Rules(
        rate=update.lr, clip=update.clip, beta=update.beta, bonus=config.guards.entropy, norm=update.norm,
        epochs=update.epochs, minibatches=update.minibatches, scaling=update.scaling, seed=config.seed,
    )  # fmt: skip


def _open(config: PolicyConfig, bundle: Bundle, ranks: Ranks, resume: bool) -> Run:
    """The run's folder; the first process opens it after the others have looked."""
    if (config.output / GATES).exists():
        mend = f"its result is {GATES}; give another `output` for another run"
        raise UsageError("the run is finished", where=str(config.output), mend=mend)
    data = {str(file): data_digest(file) for file in config.data.files}
    data |= {"bundle": bundle.manifest.digest, "gates": gates_digest(bundle.manifest.exits, bundle.files.policy.exits)}
    found = None
    for writes in (False, True):
        if ranks.first is writes:
            found = open_run(config.output, config, data, seeds={"run": config.seed}, resume=resume, writes=writes)
        ranks.wait()
    assert found is not None
    return found


def _finish(
    run: Run, config: PolicyConfig, bundle: Bundle, world: World, prompts: Prompts, price: Price,
    environment: BundleEnvironment, outcome: Outcome, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Report on the best gates, and write them last."""
    gates = gates_of_bundle(bundle, world.exits)
    gates.load_state_dict(outcome.best)
    progress("held-out prompts")
    report = evaluate(run.path / "curves.png", bundle, world, prompts.held_out, price, environment, gates)
    training = {
        "steps": outcome.steps, "stopped": outcome.stopped, "best_step": outcome.best_step,
        "validation_reward": outcome.best_reward,
    }  # fmt: skip
    whole = json.dumps({"training": training, **report}, indent=1) + "\n"
    (run.path / "evaluation.json").write_text(whole, encoding="utf-8")
    counts = ("decisions",)  # of another scale than the rest
    plot_run([{k: v for k, v in line.items() if k not in counts} for line in run.read_metrics()], run.path / "plots")
    said = {"bundle": bundle.manifest.digest, "seed": config.seed, "steps": outcome.best_step}
    (run.path / GATES).write_text(_tuned(bundle, world, gates, said).model_dump_json(indent=1), encoding="utf-8")
    return {"output": str(run.path), **training, "ships": report["ships"], "gain": report["gain"]}


def _tuned(bundle: Bundle, world: World, gates: Gates, said: dict[str, Any]) -> TunedGates:
    manifest = bundle.manifest
    exits = [
        TunedGate(layer=manifest.exits[i].layer, gate=weights, draft=world.thresholds(manifest, i, SHIPS))
        for i, weights in gates.weights().items()
    ]
    return TunedGates(exits=exits, provenance=said)
