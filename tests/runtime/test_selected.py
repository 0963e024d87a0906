"""The rule `selected`: a token that leaves never enters the caches of deeper steps.

The oracle computes whole texts at once, from scratch, with masks: at each layer a token sees itself and those earlier
tokens, inside the window, that came as deep. It is numpy's model, and transformers'.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime import Bundle
from eecompile.runtime.caches import GROWTH
from eecompile.runtime.staircase import Pool, Staircase
from eecompile.student import reference
from eecompile.student.cycles import CycleSpec
from eecompile.student.exits import EarlyExit, save_exits
from eecompile.student.loops import Loops
from eecompile.student.reference import Float, ReferenceModel
from eecompile.student.student import open_student

RULES = {"kv": ("catch_up", "selected")}
BOTH = {"kv": ("catch_up", "propagate", "selected")}
EXITS = [1, 2, 3]
GAIN = 0.35
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.05}]
TOKENS = st.integers(0, tiny.VOCAB - 1)
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
WINDOW = tiny.config("mistral", sliding_window=7)
LOOPS = Loops(prelude=1, block=1, loops=2, rank=2, projections=["q", "k", "down"])
ALONE = Loops(prelude=0, block=2, loops=2)  # the last step has no layers
MODELS: dict[str, tuple[tiny.Config, Loops | None]] = {  # those with heads of 16 are fused in bundles of one slot
    "llama": (tiny.config(), None),
    "fused": (tiny.config(head_dim=16, attention_bias=True), None),
    "window": (WINDOW, None),
    "window-wide": (tiny.config("mistral", sliding_window=7, head_dim=16), None),
    "qwen3": (tiny.config("qwen3", head_dim=16, num_key_value_heads=1), None),
    "recursive": (tiny.config(num_hidden_layers=3), LOOPS),
    "recursive-fused": (tiny.config(num_hidden_layers=2, head_dim=16), ALONE),
    "recursive-window": (tiny.config("mistral", num_hidden_layers=3, sliding_window=7), LOOPS),
}
Depths = Sequence[int]  # of each token, the number of layers that it goes through


class Selected(ReferenceModel):
    """The model over a text of whose tokens each goes through its own number of layers. Rows of those that stopped go
    on being computed, and nobody looks at them."""

    depths: Depths = ()
    _now = 0

    def _attention(self, x: Float, layer: int) -> Float:
        self._now = layer
        return super()._attention(x, layer)

    def attend(self, q: Float, k: Float, v: Float, window: int | None, softcap: float | None) -> Float:
        """In place of the module's own function, with these tokens' mask."""
        group, rows = q.shape[1] // k.shape[1], np.arange(len(q))
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("rhd,shd->hrs", q, k)
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        scores = np.where(seen(self.depths[: len(q)], self._now, window), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        assert np.isfinite(weights).all()
        assert len(rows) == weights.shape[1]
        return np.asarray(np.einsum("hrs,shd->rhd", weights / weights.sum(axis=-1, keepdims=True), v), np.float32)


def seen(depths: Depths, layer: int, window: int | None) -> Any:
    """Which tokens a token sees at a layer [R, R]: itself and the earlier ones, in the window, that came there."""
    rows, keys = np.arange(len(depths))[:, None], np.arange(len(depths))[None]
    near = (keys <= rows) & (keys > rows - (window or len(depths)))
    return near & ((np.asarray(depths) > layer) | (keys == rows))


def by_numpy(source: Path, ids: Sequence[int], depths: Depths) -> dict[int, Float]:
    """Rows [R, D] after each number of layers; those of the last layer are normalised."""
    student = open_student(source)
    model = Selected(student.spec, student.store, student.cycles)
    model.depths = depths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_attend", model.attend)
        rows, finished, _ = model.run(ids, range(1, student.spec.layers))
    return {**rows, student.spec.layers: finished}


def by_transformers(source: Path, ids: Sequence[int], depths: Depths) -> dict[int, Float]:
    """As by_numpy, of a plain checkpoint."""
    import torch

    inner, spec, rows = tiny.hugging_face(source).model, open_student(source).spec, dict[int, Float]()
    with torch.inference_mode():
        x = inner.embed_tokens(torch.tensor([list(ids)]))
        rotary = inner.rotary_emb(x, torch.arange(len(ids))[None])
        for i, layer in enumerate(inner.layers):
            visible = torch.from_numpy(seen(depths, i, spec.windows[i]))
            mask = torch.where(visible, 0.0, -1e30)[None, None]
            out = layer(x, attention_mask=mask, position_embeddings=rotary)
            x = out[0] if isinstance(out, tuple) else out
            rows[i + 1] = (inner.norm(x) if i + 1 == spec.layers else x)[0].numpy()
    return rows


def built(shelf: Any, name: str, **options: Any) -> tuple[Bundle, Path]:
    """The bundle of one of MODELS with an exit after every layer but the last, and its checkpoint."""
    config, loops = MODELS[name]
    opened = shelf.bundle(config, EXITS, loops=loops, **{"build": RULES, **options})
    return opened, shelf.checkpoint(config, loops=loops)


def layers_through(opened: Bundle, steps: int) -> int:
    """Layers that the first `steps` steps have."""
    return sum(opened.manifest.caches[s.cache] for s in opened.manifest.schedule[:steps])


def ends(opened: Bundle) -> Any:
    """How many steps a token may go through."""
    schedule = opened.manifest.schedule
    return st.sampled_from([k + 1 for k, step in enumerate(schedule) if step.exit is not None] + [len(schedule)])


def walk(those: Sequence[tuple[Staircase, int, int]]) -> list[Float]:
    """Run a token of each staircase through a number of steps, where it stops, in the same passes; returns the rows."""
    pool = those[0][0].pool
    pool.embed([one for one, _, _ in those], [[token] for _, token, _ in those])
    rows: dict[int, Float] = {}
    for k in range(len(pool.schedule)):
        going = [(i, one) for i, (one, _, steps) in enumerate(those) if steps > k]
        found = pool.run_step(k, [one for _, one in going]) if going else []
        for (i, one), made in zip(going, found, strict=True):
            assert len(made) == 1
            rows[i] = made[0].copy()
            if those[i][2] == k + 1 < len(pool.schedule):
                one.stop_at(k + 1)
    return [rows[i] for i in range(len(those))]


def check(opened: Bundle, expected: dict[int, Float], rows: Sequence[Float], depths: Depths) -> None:
    """The rows of the last tokens of a text are those of the oracle."""
    for position, row in enumerate(rows, len(depths) - len(rows)):
        np.testing.assert_allclose(row, expected[depths[position]][position], **TOLERANCE)


@given(
    name=st.sampled_from([*MODELS]), padded=st.sampled_from([1, 3]), data=st.data(),
    prompt=st.lists(TOKENS, min_size=1, max_size=9),
)  # fmt: skip
@settings(max_examples=40)
def test_rows_are_those_of_the_model_from_scratch(
    shelf: Any, name: str, padded: int, prompt: list[int], data: Any
) -> None:
    """Any pattern of exits; what came as deep as a step is in its cache, and nothing else."""
    opened, source = built(shelf, name, minimum_rows=padded)
    moves = data.draw(st.lists(st.tuples(TOKENS, ends(opened)), min_size=1, max_size=25))
    one, last = Staircase(opened.manifest, opened.graphs), len(opened.manifest.schedule)
    one.prefill(prompt)
    rows = [walk([(one, token, steps)])[0] for token, steps in moves]
    went = [last] * len(prompt) + [steps for _, steps in moves]
    depths = [layers_through(opened, steps) for steps in went]
    ids = [*prompt, *(token for token, _ in moves)]
    check(opened, by_numpy(source, ids, depths), rows, depths)
    assert one.pending == sum(one.waiting) == 0
    assert one.filled == [sum(steps > k for steps in went) for k in range(last)]
    assert one.layer_rows == sum(depths)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@given(name=st.sampled_from([*MODELS]), padded=st.sampled_from([1, 3]), each_pass=st.sampled_from([0.5, 60.0]),
       prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=3, max_size=3), data=st.data())  # fmt: skip
@settings(max_examples=12)
def test_a_batch_is_its_sequences_alone(
    shelf: Any, precision: str, name: str, padded: int, each_pass: float, prompts: list[list[int]], data: Any
) -> None:
    """Bit for bit, whoever shares the passes: rows and caches."""
    opened, source = built(shelf, name, minimum_rows=padded, slots=4, precision=precision)
    pool = Pool(opened.manifest, opened.graphs, 3, each_pass)
    crowd = [Staircase(opened.manifest, opened.graphs, pool) for _ in prompts]
    alone = [Staircase(opened.manifest, opened.graphs) for _ in prompts]
    for one, prompt in zip((*crowd, *alone), prompts * 2, strict=True):
        one.prefill(prompt)
    last = len(opened.manifest.schedule)
    texts: list[Any] = [[(token, last) for token in prompt] for prompt in prompts]
    said: list[list[Float]] = [[] for _ in prompts]
    move = st.one_of(st.none(), st.tuples(TOKENS, ends(opened)))
    for moves in data.draw(st.lists(st.tuples(move, move, move), min_size=1, max_size=15)):
        taken = [i for i, made in enumerate(moves) if made]
        rows = walk([(crowd[i], *moves[i]) for i in taken]) if taken else []
        for i, row in zip(taken, rows, strict=True):
            assert np.array_equal(row, walk([(alone[i], *moves[i])])[0])
            texts[i].append(moves[i])
            said[i].append(row)
    for one, other, text, rows in zip(crowd, alone, texts, said, strict=True):
        kept = [tiny.caches(each, each.filled) for each in (one, other)]
        assert all(np.array_equal(a, b) for a, b in zip(*kept, strict=True))
        if precision == "fp32":
            depths = [layers_through(opened, steps) for _, steps in text]
            check(opened, by_numpy(source, [token for token, _ in text], depths), rows, depths)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama", "fused", "window", "qwen3"])
def test_rows_are_those_of_transformers(shelf: Any, name: str) -> None:
    pytest.importorskip("torch")
    opened, source = built(shelf, name)
    one, rng = Staircase(opened.manifest, opened.graphs), np.random.default_rng(5)
    ids, depths = rng.integers(0, tiny.VOCAB, 40).tolist(), [4, 4, *rng.integers(1, 5, 38).tolist()]
    one.prefill(ids[:2])
    rows = [walk([(one, token, depth)])[0] for token, depth in zip(ids[2:], depths[2:], strict=True)]
    check(opened, by_transformers(source, ids, depths), rows, depths)
    assert min(Counter(depths).values()) > 4


@pytest.mark.parametrize("name", tiny.variants())
def test_every_family(shelf: Any, name: str) -> None:
    """With no exits the bits are those of a bundle without the rule; with exits, the model's from scratch."""
    config = tiny.variants()[name]
    slots = 2 if any(open_student(shelf.checkpoint(config)).spec.windows) else 1  # windows are not fused with the rule
    opened, plain = (shelf.bundle(config, [1, 3], build=build, slots=slots) for build in (BOTH, {}))
    ids = np.random.default_rng(3).integers(0, tiny.VOCAB, 40).tolist()
    finished = []
    for bundle in (opened, plain):
        one = Staircase(bundle.manifest, bundle.graphs)
        one.prefill(ids[:25])
        finished.append([walk([(one, token, 3)])[0] for token in ids[25:]])
    assert np.array_equal(*finished)
    one = Staircase(opened.manifest, opened.graphs)
    steps = [3] * 5 + [1, 1, 3, 2, 1] * 7
    one.prefill(ids[:5])
    rows = [walk([(one, token, n)])[0] for token, n in zip(ids[5:], steps[5:], strict=True)]
    depths = [(1, 3, 4)[n - 1] for n in steps]
    check(opened, by_numpy(shelf.checkpoint(config), ids, depths), rows, depths)


@pytest.mark.parametrize("name", ["fused", "window"])
def test_the_other_rules_do_not_notice(shelf: Any, name: str) -> None:
    """Bit for bit what a bundle without the rule gives, K/V-only passes and rows that catch up included."""
    rng = np.random.default_rng(6)
    moves = [(int(rng.integers(tiny.VOCAB)), int(rng.integers(1, 5))) for _ in range(40)]
    for rule in ("catch_up", "propagate"):
        found = []
        for rules in (BOTH["kv"], ("catch_up", "propagate")):
            opened, _ = built(shelf, name, build={"kv": rules})
            one, rows = Staircase(opened.manifest, opened.graphs), list[Float]()
            one.prefill([1, 2, 3])
            for token, steps in moves:
                one.append([token])
                rows += [one.run_step(k)[-1].copy() for k in range(steps)]
                if rule == "propagate" and steps < 4:
                    one.leave_at(steps)
            found.append(np.stack(rows))
        assert np.array_equal(*found)


def test_a_block_that_a_gate_repeats(tmp_path: Path) -> None:
    rng, cycle = np.random.default_rng(1), CycleSpec(first=1, layer=3, repeats=2, threshold=0.45)
    tensors = {
        name: (rng.standard_normal(shape) * (0.2 if "weight" in name else 0.5)).astype(np.float32)
        for name, shape in cycle.shapes(32).items()
    }
    source = tiny.checkpoint(tmp_path / "checkpoint", gain=GAIN)
    save_exits(source, EarlyExit(exits=[], cycles=[cycle]), tensors)
    opened = tiny.open_bundle(tmp_path / "bundle", source, [1, 3], **RULES)
    one, ids = Staircase(opened.manifest, opened.graphs), rng.integers(0, tiny.VOCAB, 30).tolist()
    one.prefill(ids[:4])
    steps = [3] * 4 + rng.integers(1, 4, 26).tolist()
    rows = [walk([(one, token, n)])[0] for token, n in zip(ids[4:], steps[4:], strict=True)]
    depths = [(1, 3, 4)[n - 1] for n in steps]
    assert one.layer_rows > sum(depths) + 4
    check(opened, by_numpy(source, ids, depths), rows, depths)


def test_deeper_caches_are_shorter(shelf: Any) -> None:
    opened, _ = built(shelf, "llama")
    one = Staircase(opened.manifest, opened.graphs)
    one.prefill([1, 2, 3])
    for token in range(100):
        walk([(one, token, 1 if token % 10 else 4)])
    assert one.filled == [103, 13, 13, 13]
    assert one.caches.lengths[0] >= 103
    assert max(one.caches.lengths[1:]) <= GROWTH
    with pytest.raises(ValueError, match="not one at which nothing"):
        one.rewind(5)
    one.reset()
    one.prefill([1, 2, 3])
    assert one.filled == [3] * 4


# -- decoding ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "recursive", "window"])
def calibrated(shelf: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    """Calibrated for two rules, its policy's rule selected."""
    path = tmp_path_factory.mktemp("selected") / "bundle"
    config, loops = MODELS[request.param]
    source = shelf.checkpoint(config, loops=loops, gain=GAIN)
    tiny.bundle_at(path, source, EXITS, **RULES, slots=8)
    tiny.calibrate(path, ALLOWED)
    return tiny.calibrate(path, ALLOWED, kv="selected")


def test_the_rule_matters(calibrated: Bundle) -> None:
    """It is the policy's where none is asked for; the two give other tokens, after a common beginning."""
    prompts = [[i, 2 * i, 5] for i in range(5)]
    found = {
        kv: [tiny.tokens(calibrated, prompt, 40, mode="confident", kv=kv) for prompt in prompts]
        for kv in (None, "selected", "catch_up")
    }
    assert found[None] == found["selected"] != found["catch_up"]
    assert [ids[0] for ids in found["selected"]] == [ids[0] for ids in found["catch_up"]]


def test_decoding_in_a_batch_is_decoding_alone(calibrated: Bundle) -> None:
    depths: Counter[int] = Counter()

    @given(
        prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=7), slots=st.integers(1, 4),
        cap=st.integers(1, 8), each_pass=st.sampled_from([0.5, 60.0]), count=st.integers(1, 30),
        rules=st.lists(st.sampled_from(["selected", "selected", "catch_up"]), min_size=7, max_size=7),
    )  # fmt: skip
    @settings(max_examples=12)
    def check_all(prompts: Any, slots: int, cap: int, each_pass: float, count: int, rules: list[str]) -> None:
        batch = calibrated.batch(slots=slots, mode="confident", pending_cap=cap)
        batch.pool.each_pass = each_pass
        requests = []
        for prompt, kv in zip(prompts, rules, strict=False):
            batch._own = calibrated.settings(mode="confident", pending_cap=cap, kv=kv)
            requests.append(batch.add(prompt, max_new_tokens=count))
        list(batch.run())
        for request, prompt, kv in zip(requests, prompts, rules, strict=False):
            assert request.ids == tiny.tokens(calibrated, prompt, count, mode="confident", pending_cap=cap, kv=kv)
            depths.update(request.exit_layers)

    check_all()
    assert set(depths) == {1, 2, 3, 4}, depths


def test_nothing_waits_and_a_budget_is_spent_to_the_end(calibrated: Bundle) -> None:
    session = calibrated.session(mode="confident", budget=4 * 3 + 40)
    generation = session.generate([3, 1, 4], max_new_tokens=60)
    depths = []
    for token in generation:
        depths.append(token.exit_layer)
        assert session._stairs.pending == 0
    stats = generation.stats
    assert stats.stop_reason == "budget"
    assert stats.layer_rows == 4 * 3 + sum(depths[1:])  # the first token is the prompt's
    assert 4 * 3 + 40 - 4 < stats.layer_rows <= 4 * 3 + 40
    caps = [tiny.tokens(calibrated, [3, 1, 4], 60, mode="confident", pending_cap=cap) for cap in (1, 8)]
    assert caps[0] == caps[1]


def test_the_rule_is_refused_where_it_does_not_hold(calibrated: Bundle, shelf: Any) -> None:
    with pytest.raises(UsageError, match=r"full model's keys and values(.|\n)*mode confident"):
        calibrated.session(mode="exact", kv="selected")
    with pytest.raises(UsageError, match=r"no graphs for selected(.|\n)*--kv catch_up,selected"):
        shelf.bundle(at=EXITS).session(mode="confident", kv="selected")
    stricter: Any = {1: {"max_prob": 0.5}}
    for changed in ({"thresholds": stricter}, {"thresholds": {1: None}}, {"minimum_depth": 2}):
        with pytest.raises(Uncalibrated, match="tested point"):
            calibrated.session(mode="confident", kv="selected", **changed)
    assert tiny.tokens(calibrated, [5, 7], 30, mode="exact") == tiny.tokens(calibrated, [5, 7], 30)
