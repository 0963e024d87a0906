"""Rollouts, their costs and their rewards on real tiny bundles, each against another way to the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

import torch
from eecompile_training.policy.costs import Meter, price_from_bytes, rollout_cost
from eecompile_training.policy.environment import BundleEnvironment, Dealing
from eecompile_training.policy.forced import Replay, Rule, read_texts
from eecompile_training.policy.gates import gates_of_bundle, shifted, trained_exits, with_gates
from eecompile_training.policy.prompts import Prompt, Prompts
from eecompile_training.policy.ranks import Ranks
from eecompile_training.policy.records import Asked, Rollout, TokenWalk
from eecompile_training.policy.rewards import Agreement, Answer, Task, exact_json, quality_of
from eecompile_training.policy.rollouts import Roller, World
from eecompile_training.policy.states import GateInput

from eecompile.errors import UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.forced import run_forced
from eecompile.runtime.staircase import Staircase
from eecompile.student.exits import ExitSpec

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # as train_file has it
GATES: Any = ["learned", "max_prob"]
EXITS = [
    ExitSpec(layer=1, gates=GATES, gate_units=5),
    ExitSpec(layer=2, adapter="affine", gates=GATES, gate_units=3),
    ExitSpec(layer=3, gates=["max_prob"]),
]
MODULES = [ExitSpec(layer=1, adapter="mlp", gates=GATES, gate_units=4),
           ExitSpec(layer=2, adapter="layer", gates=GATES, gate_units=4)]  # fmt: skip
PROMPT = [5, 9, 100, 3, 77, 12]
SEEDS = [(0, 0, 0, i) for i in range(6)]


def bundle_of(shelf: Any, **options: Any) -> Bundle:
    """Exits that often agree."""
    opened: Bundle = shelf.bundle(
        exits=EXITS, gain=0.3, slots=3, build={"kv": ("catch_up", "propagate"), "pending_cap": 3}, **options
    )
    return opened


def world_of(kv: str = "catch_up", tokens: int = 24, **others: float) -> World:
    return World([0, 1], kv, 3, tokens, others)  # type: ignore[arg-type]


def same(a: Rollout, b: Rollout) -> bool:
    """All but the last bit of what a gate says, whose product the engine does otherwise for a lone row."""
    columns = ("token", "exit", "leave", "rows")
    equal = [np.array_equal(getattr(a.decisions, c), getattr(b.decisions, c)) for c in columns]
    close = np.allclose(a.decisions.chance, b.decisions.chance, atol=1e-6, rtol=0)
    return a.ids == b.ids and a.walks == b.walks and all(equal) and close


@pytest.mark.parametrize("kv", ["catch_up", "propagate"])
def test_slots_change_nothing_and_seeds_do(shelf: Any, kv: str) -> None:
    bundle, world = bundle_of(shelf), world_of(kv)
    alone, beside = (Roller(bundle, world, slots).play(PROMPT, SEEDS) for slots in (1, 3))
    assert all(same(a, b) for a, b in zip(alone, beside, strict=True))
    assert len({tuple(one.ids) for one in alone}) > 1
    assert len({one.ids[0] for one in alone}) == 1


def test_rollouts_leave_as_often_as_their_gates_say(shelf: Any) -> None:
    played = Roller(bundle_of(shelf), world_of()).play(PROMPT, [(1, i) for i in range(40)])
    leave = np.concatenate([one.decisions.leave for one in played])
    chance = np.concatenate([one.decisions.chance for one in played])
    assert len(chance) > 500
    assert abs(leave.mean() - chance.mean()) < 4 * np.sqrt((chance * (1 - chance)).sum()) / len(chance)


@dataclass(frozen=True)
class Counted:
    """An engine that counts its passes by name and rows."""

    engine: Any
    name: str
    passes: Counter[tuple[str, int]]

    @property
    def info(self) -> Any:
        return self.engine.info

    @property
    def memory(self) -> Any:
        return self.engine.memory

    def bind(self, buffers: Any) -> Any:
        run, first = self.engine.bind(buffers), buffers.get("token_ids", buffers.get("hidden"))
        rows = first.size if "token_ids" in buffers else first.size // first.shape[-1]

        def call() -> None:
            self.passes[self.name, rows] += 1
            run()

        return call


def counted(bundle: Bundle) -> tuple[Bundle, Counter[tuple[str, int]]]:
    passes: Counter[tuple[str, int]] = Counter()

    def many(name: str, engines: Any) -> list[Any]:
        return [e and Counted(e, f"{name}_{i}", passes) for i, e in enumerate(engines)]

    g = bundle.graphs
    graphs = replace(
        g, embed=Counted(g.embed, "embed", passes), head=Counted(g.head, "head", passes), kv=many("kv", g.kv),
        segments=many("segment", g.segments), exits=many("exit", g.exits),
    )  # fmt: skip
    return replace(bundle, graphs=graphs), passes


@pytest.mark.parametrize("kv", ["catch_up", "propagate"])
def test_the_meter_prices_the_passes_that_ran(shelf: Any, kv: str) -> None:
    """Every pass of every rollout, by graph and rows; the prompt's, which the meter leaves out, are played apart."""
    passes = Counter[tuple[str, int]]()
    bundle, world = bundle_of(shelf), world_of(kv, max_prob=0.05)
    watched, ran = counted(bundle)
    roller = Roller(watched, world)
    for seed in SEEDS:
        ran.clear()
        [one] = roller.play(PROMPT, [seed])
        priced: Counter[tuple[str, int]] = Counter()

        def price(graph: str, rows: int, length: int, priced: Counter[tuple[str, int]] = priced) -> float:
            priced[graph, rows] += 1
            return 0.0

        rollout_cost(Meter(bundle.manifest, price, length=len(PROMPT), cap=3, kv=kv), one.walks, ended=True)
        priced += Counter({("embed", len(PROMPT)): 1, ("head", 1): 1})
        priced += Counter((f"segment_{step.segment}", len(PROMPT)) for step in bundle.manifest.schedule)
        assert +priced == +ran
        passes += ran
    assert any(rows > 1 and graph.startswith("kv" if kv == "propagate" else "segment_3") for graph, rows in passes)


def test_what_is_left_pending_is_priced_as_part_of_the_next_pass(shelf: Any) -> None:
    manifest = bundle_of(shelf).manifest
    price = {"embed": 0.0, "exit_0": 1.0, "head": 2.0}

    def seconds(graph: str, rows: int, length: int) -> float:
        return price.get(graph, 10.0 + rows)

    meter = Meter(manifest, seconds, length=4, cap=3)
    left = TokenWalk((Asked(0, True),), 0)
    costs = rollout_cost(meter, [left, left], ended=False)
    assert [cost.sunk for cost in costs] == [(12.0,), (12.0,)]
    assert costs[0].total == 11 + 1 + 2
    assert costs[1].total == 14 + 3 * 2  # two rows more in each of the three segments after the exit
    ended = rollout_cost(Meter(manifest, seconds, length=4, cap=3), [left, left], ended=True)
    assert ended[1].total == 14


def test_costs_by_bytes_know_heads_lengths_and_layers(shelf: Any) -> None:
    manifest = bundle_of(shelf).manifest
    price = price_from_bytes(manifest)
    assert price("segment_0", 1, 100) > price("segment_0", 1, 10)
    assert price("segment_0", 9, 10) > price("segment_0", 1, 10)
    assert price("head", 1, 0) == pytest.approx(tiny.VOCAB * 32 / ((manifest.model.parameters - tiny.VOCAB * 32) / 4))
    assert price("exit_1", 1, 0) > price("exit_0", 1, 0) > 0


@pytest.mark.parametrize("exits", [EXITS, MODULES], ids=["plain", "modules"])
def test_states_are_what_the_gates_read(shelf: Any, exits: Any) -> None:
    """The gate of the states, computed here, is what the exit's own graph says of the hidden states."""
    bundle = shelf.bundle(exits=exits, gain=0.3)
    learned = [i for i, e in enumerate(exits) if "learned" in e.gates]
    [one] = Roller(bundle, World(learned, "catch_up", 8, 16)).play(PROMPT, [(4, 4)])
    gates = gates_of_bundle(bundle, learned)
    for exit_ in learned:
        own = one.decisions.exit == exit_
        states = GateInput(bundle, exit_)(one.decisions.rows[own])
        with torch.no_grad():
            said = torch.sigmoid(gates.logits(exit_, torch.from_numpy(states.astype(np.float64)))).numpy()
        assert own.any()
        assert said == pytest.approx(one.decisions.chance[own], abs=2e-6)


def test_quality_is_the_share_of_the_full_models_tokens(shelf: Any) -> None:
    bundle = bundle_of(shelf)
    for one in Roller(bundle, world_of()).play(PROMPT, SEEDS):
        wanted = []
        for t in range(1, len(one.ids)):
            stairs = Staircase(bundle.manifest, bundle.graphs)
            stairs.prefill([*PROMPT, *one.ids[:t]])
            wanted.append(int(tiny.head_logits(bundle, stairs.newest[-1:]).argmax()))
        found = Agreement(bundle)(Prompt(tuple(PROMPT)), one)
        assert found * len(wanted) == pytest.approx((np.array(one.ids[1:]) == np.array(wanted)).astype(float))


def environment_of(bundle: Bundle, world: World, prompts: Sequence[Sequence[int]]) -> BundleEnvironment:
    those = [Prompt(tuple(ids)) for ids in prompts]
    dealing, price = Dealing(prompts=2, group=3, slots=1, seed=5), price_from_bytes(bundle.manifest)
    return BundleEnvironment(bundle, world, Prompts(those, those, those), price, Agreement(bundle), dealing, Ranks())


@pytest.mark.parametrize("others", [{}, {"max_prob": 0.1}])
def test_a_rule_over_a_text_is_what_the_runtime_does(shelf: Any, others: dict[str, float]) -> None:
    bundle, world, prompts = bundle_of(shelf), world_of(**others), [PROMPT, PROMPT[::-1], [1, 2, 3, 4]]
    texts = read_texts(bundle, world, [Prompt(tuple(ids)) for ids in prompts])
    replay = Replay(bundle, world, price_from_bytes(bundle.manifest), texts)
    for learned in (0.2, 0.5, 0.8):
        point = replay.point(Rule(world.exits, learned, world.others))
        settings, agree, depths = world.settings(bundle.manifest, learned), list[bool](), list[int]()
        for ids, text in zip(prompts, texts, strict=True):
            first = tiny.tokens(bundle, ids, world.tokens)
            [said] = run_forced(bundle, settings, [[*ids, *first]], first=text.first)
            agree += (np.array(said.tokens) == text.final).tolist()
            depths += said.depths
        assert point.agreement == pytest.approx(np.mean(agree))
        assert point.depth == pytest.approx(np.mean(depths))
        assert 0 < point.exit_rate < 1


def test_the_rule_that_ships_is_judged_on_its_own_tokens(shelf: Any) -> None:
    """Gates moved to a threshold and compared with one half are the bundle's own at that threshold."""
    bundle, world = bundle_of(shelf), world_of(max_prob=0.02)
    gates = shifted(gates_of_bundle(bundle, world.exits), {0: 0.6, 1: 0.4})
    [one] = Roller(with_gates(bundle, gates.weights()), world).play(PROMPT, [()])
    thresholds: Any = {1: {"learned": 0.6, "max_prob": 0.02}, 2: {"learned": 0.4, "max_prob": 0.02}, 3: None}
    settings = bundle.settings(mode="exact", pending_cap=3, thresholds=thresholds)
    [said] = run_forced(bundle, replace(settings, mode="confident"), [[*PROMPT, *one.ids[:-1]]], first=len(PROMPT))
    depths = [4 if walk.fired is None else walk.fired + 1 for walk in one.walks]
    assert (said.tokens, said.depths) == (one.ids[1:], depths)
    judged = environment_of(bundle, world, [PROMPT]).judge(gates)
    assert judged.depth == pytest.approx(np.mean(depths))
    assert judged.exit_rate == pytest.approx(np.mean([d < 4 for d in depths]))


def test_exits_that_cannot_be_tuned_are_refused_with_the_way_to_them(shelf: Any) -> None:
    bundle = bundle_of(shelf)
    assert trained_exits(bundle, []) == [0, 1]
    with pytest.raises(UsageError, match="layer 3 has no learned gate") as caught:
        trained_exits(bundle, [1, 3])
    assert "--gates learned" in caught.value.mend
    with pytest.raises(UsageError, match="no exit after layer 7"):
        trained_exits(bundle, [7])
    with pytest.raises(UsageError, match="do not fit the context"):
        Roller(bundle, world_of(tokens=300)).play(PROMPT, SEEDS)


def test_a_tasks_reward_is_all_at_the_end(shelf: Any) -> None:
    bundle = bundle_of(shelf)
    [one] = Roller(bundle, world_of(tokens=5)).play(PROMPT, [(1,)])
    found = Task(bundle, lambda answer: 0.25 * (answer.target == "yes"), "here")(Prompt(tuple(PROMPT), "yes"), one)
    assert found.tolist() == [0, 0, 0, 0, 0.25]
    with pytest.raises(UsageError, match="not a number from 0 to 1"):
        Task(bundle, lambda answer: 1.5, "here")(Prompt(tuple(PROMPT)), one)
    with pytest.raises(UsageError, match="there is no reward"):
        quality_of("eecompile_training.policy.rewards:nothing", bundle)


@pytest.mark.parametrize(
    ("text", "worth"), [(' {"b": [1], "a": 2}\nmore', 1), ('{"a": 3, "b": [1]}', 0), ("no", 0), ("", 0)]
)
def test_exact_json_compares_values(text: str, worth: float) -> None:
    assert exact_json(Answer([], [], text, '{"a": 2, "b": [1]}')) == worth
    assert exact_json(Answer([], [], text, None)) == 0
