"""Exits with a layer or an MLP block of their own: against transformers, and a cache that is right however filled."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eecompile import contract as c
from eecompile.bench.profile import measure_profile
from eecompile.bundle.manifest import Manifest
from eecompile.errors import UsageError
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.modules import LayerAsker
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.trace import Tracer
from eecompile.runtime.walk import Walk, joined, parted
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec, save_exits
from eecompile.student.student import open_student
from eecompile.verify import verify_bundle

GAIN = 0.35
IDS = np.random.default_rng(5).integers(0, tiny.VOCAB, 150).tolist()  # more than a prefill pass
EXITS = [
    ExitSpec(layer=1, adapter="layer", gates=["max_prob"]),
    ExitSpec(layer=2, adapter="mlp", gates=["max_prob"]),
    ExitSpec(layer=3, adapter="layer", gates=["learned", "max_prob"], gate_units=3),
]
MODELS = {
    "llama": tiny.config(),
    "fused": tiny.config(head_dim=16, attention_bias=True, mlp_bias=True),
    "window": tiny.config("mistral", sliding_window=16, num_key_value_heads=4),
    "qwen3": tiny.config("qwen3", head_dim=16),
}


def module_model(source: Path, exit_: ExitSpec, target: Path) -> Path:
    """The plain checkpoint that ends at this exit: its module is the last layer (for "mlp" without attention)."""
    student = open_student(source)
    own, extra = student.own_store, student.exits.store
    assert extra is not None
    layer, prefix = exit_.layer, f"exit.{exit_.layer}."
    kept = [n for n in own.tensors if ".layers." not in n or int(n.split(".")[2]) < layer]
    tensors = {n: own.read(n) for n in kept}
    for name, shape in student.spec.layer_shapes(layer).items():
        tensors[name] = np.zeros(shape, np.float32)  # where an MLP has none
    for name in extra.tensors:
        part = name.removeprefix(prefix)
        if name.startswith(prefix) and not part.startswith("gate."):
            tensors["model.norm.weight" if part == "final_norm.weight" else f"model.layers.{layer}.{part}"] = (
                extra.read(name)
            )
    settings = tiny.json.loads((source / "config.json").read_text())
    return tiny.checkpoint(target, {**settings, "num_hidden_layers": layer + 1}, tensors)


@pytest.mark.torch
@pytest.mark.parametrize("model", MODELS)
def test_an_exit_says_what_a_model_that_ends_with_its_module_says(shelf: Any, tmp_path: Path, model: str) -> None:
    pytest.importorskip("transformers")
    source = shelf.checkpoint(MODELS[model], EXITS)
    trace = Tracer(shelf.bundle(MODELS[model], exits=EXITS)).trace(IDS)
    for exit_, said in zip(EXITS, trace.exits, strict=True):
        oracle = tiny.hugging_face(module_model(source, exit_, tmp_path / f"{exit_.layer}"))
        _, logits = tiny.hugging_face_states(oracle, IDS)
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(said.token, logits.argmax(axis=1))
        np.testing.assert_allclose(said.max_prob, probability.max(axis=1), atol=1e-4)


@pytest.mark.parametrize("exit_", EXITS[:2], ids=["layer", "mlp"])
def test_every_tensor_of_a_module_counts(tmp_path: Path, exit_: ExitSpec) -> None:
    source = tiny.checkpoint(
        tmp_path / "c", tiny.config("qwen3", head_dim=16, attention_bias=True, num_hidden_layers=3)
    )
    store = open_student(tiny.add_exits(source, [exit_])).exits.store
    assert store is not None
    tensors = {name: store.read(name) for name in store.tensors}

    def said(changed: dict[str, Any]) -> Any:
        save_exits(source, tiny.EarlyExit(exits=[exit_]), {**tensors, **changed})
        return Tracer(tiny.open_bundle(tmp_path / "b", source, context=64)).trace(IDS[:40]).exits[0].max_prob

    whole = said({})
    assert len(tensors) == (16 if exit_.adapter == "layer" else 5)
    for name, tensor in tensors.items():
        blank = np.ones_like(tensor) if "norm" in name else np.zeros_like(tensor)
        assert np.abs(said({name: blank}) - whole).max() > 1e-4, name


@pytest.mark.parametrize("minimum_rows", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("model", ["llama", "fused"])
def test_what_an_exit_says_does_not_depend_on_when_it_was_asked(
    shelf: Any, model: str, precision: str, minimum_rows: int
) -> None:
    opened = shelf.bundle(MODELS[model], exits=EXITS, precision=precision, minimum_rows=minimum_rows)
    expected = Tracer(opened, boundaries=True).trace(IDS)
    head = opened.heads(1)["full"]

    for seed in range(6):
        rng = np.random.default_rng(seed)
        stairs, askers = Staircase(opened.manifest, opened.graphs), opened.askers()
        stairs.watch(askers, [0, 2])
        while stairs.length < len(IDS):
            width = rng.choice([1, 1, 2, 5, 40, 128])
            stairs.append(IDS[stairs.length : stairs.length + width])
            rows = [stairs.run_step(k) for k in range(4)]
            for exit_ in [e for e in (0, 2) if rng.random() < 0.5]:
                out = askers[exit_](rows[exit_][-1:])
                said, wanted = head(out.hidden), expected.exits[exit_]
                assert said.max_prob[0] == wanted.max_prob[stairs.length - 1]
                assert (
                    abs(out.confidence[0] - wanted.confidence[stairs.length - 1]) < 1e-6
                )  # a gate's weights are inputs
            if rng.random() < 0.25:
                stairs.rewind(int(rng.integers(stairs.length // 2, stairs.length + 1)))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_exact_is_full(shelf: Any, precision: str) -> None:
    seen: Counter[str] = Counter()

    @given(
        model=st.sampled_from(sorted(MODELS)),
        prompt=st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=140),
        bounds=st.lists(st.none() | st.sampled_from([0.0, 0.02, 0.1]), min_size=3, max_size=3), cap=st.integers(1, 8),
        how=st.sampled_from([Sampling(), Sampling(temperature=0.8, seed=3)]),
    )  # fmt: skip
    @settings(max_examples=40)
    def check(model: str, prompt: list[int], bounds: list[float | None], cap: int, how: Sampling) -> None:
        opened = shelf.bundle(MODELS[model], exits=EXITS, precision=precision, gain=GAIN)
        full = tiny.tokens(opened, prompt, 24, how)
        thresholds = {
            e.layer: None if b is None else dict.fromkeys(e.gates, b) for e, b in zip(EXITS, bounds, strict=True)
        }
        session = opened.session(mode="exact", thresholds=thresholds, pending_cap=cap)
        exact = session.generate(prompt, max_new_tokens=24, sampling=how)
        assert [t.id for t in exact] == full
        seen.update(drafted=exact.stats.drafted, kept=exact.stats.drafted - exact.stats.rejected)

    check()
    assert seen["drafted"] > 200, seen


def test_confident_emits_what_a_trace_of_its_output_says(shelf: Any, tmp_path: Path) -> None:
    """An exit that was not asked for a while has the same keys and values when it is."""
    source = shelf.checkpoint(exits=EXITS, gain=GAIN)
    bounds = [{"max_prob": 0.2}, None, {"learned": 0.3, "max_prob": 0.05}]
    opened = tiny.calibrate(tiny.bundle_at(tmp_path / "bundle", source), bounds)
    session = opened.session(mode="confident")
    for prompt in ([3, 1, 4], IDS[:131], [7]):
        generated = list(session.generate(prompt, max_new_tokens=80))
        assert_as_traced(opened, prompt, generated, {1, 3, 4} if len(prompt) == 3 else {4})


def assert_as_traced(opened: Bundle, prompt: Sequence[int], generated: Any, depths: set[int]) -> None:
    """Each token is what the exit at its depth says, teacher-forced on the output; exits at `depths` were used."""
    trace = Tracer(opened).trace([*prompt, *(t.id for t in generated)][:-1])
    said = {1: trace.exits[0], 3: trace.exits[2], 4: trace.final}
    for position, token in enumerate(generated, len(prompt) - 1):
        assert said[token.exit_layer].token[position] == token.id
    assert depths <= {t.exit_layer for t in generated}


def test_closed_exits_cost_nothing(shelf: Any) -> None:
    opened = shelf.bundle(exits=EXITS)
    full = opened.session()
    list(full.generate([1, 2], max_new_tokens=8))
    assert full._stairs.watchers == {}
    some = opened.session(mode="exact", thresholds={1: {"max_prob": 0.5}, 3: None})
    list(some.generate([1, 2], max_new_tokens=2))
    assert list(some._stairs.watchers) == [0]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_verify_recomputes_modules_from_the_stored_weights(shelf: Any, tmp_path: Path, precision: str) -> None:
    source = shelf.checkpoint(exits=EXITS, gain=GAIN)
    path = tiny.bundle_at(tmp_path / "bundle", source, precision=precision)
    report = verify_bundle(path, checkpoint=source, prompts=[IDS[:60], [1, 2]], tokens=6)
    assert [check.name for check in report.checks if not check.passed] == []
    names = {check.name: check for check in report.checks}
    assert names["weights exit_1"].figures["tensors"] == 10
    assert names["exit_3"].figures["rows"] > 60
    alone = {check.name: check for check in verify_bundle(path, prompts=[[1, 2]], tokens=4).checks}
    assert "needs the checkpoint" in alone["exit_1"].note
    other = tiny.add_exits(tiny.checkpoint(tmp_path / "other", gain=GAIN), EXITS, seed=1)
    against = verify_bundle(path, checkpoint=other, prompts=[[1, 2]], tokens=4)
    assert {"weights exit_1", "weights exit_2", "weights exit_3"} <= {c.name for c in against.checks if not c.passed}


def test_profiles_time_a_layer_by_rows_and_length(shelf: Any) -> None:
    profile = measure_profile(shelf.bundle(exits=EXITS), quick=True)
    passes: Any = profile["passes"]
    shapes = {name: {(p["rows"], p["length"]) for p in passes if p["graph"] == name} for name in ("exit_0", "exit_1")}
    assert shapes["exit_1"] == {(1, 0)}
    assert {(1, 64), (9, 64)} <= shapes["exit_0"]


def test_modules_have_to_be_whole_and_finite(tmp_path: Path) -> None:
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "c"), EXITS[:2])
    store = open_student(source).exits.store
    assert store is not None
    tensors = {name: store.read(name) for name in store.tensors}
    schema = tiny.EarlyExit(exits=EXITS[:2])
    save_exits(source, schema, {n: t for n, t in tensors.items() if n != "exit.1.self_attn.v_proj.weight"})
    with pytest.raises(UsageError, match=r"lacks exit\.1\.self_attn\.v_proj\.weight"):
        open_student(source)
    save_exits(source, schema, {**tensors, "exit.2.mlp.up_proj.weight": np.full((64, 32), np.inf, np.float32)})
    with pytest.raises(UsageError, match=r"exit\.2\.mlp\.up_proj\.weight is not finite"):
        open_student(source)
    save_exits(source, schema, {})
    with pytest.raises(UsageError, match="modules but no weights"):
        open_student(source)


@pytest.mark.parametrize("mode", ["exact", "confident"])
def test_sequences_of_a_batch_have_layers_rows_of_their_own(shelf: Any, tmp_path: Path, mode: str) -> None:
    source = shelf.checkpoint(exits=EXITS, gain=GAIN)
    bounds = [{"max_prob": 0.2}, {"max_prob": 0.2}, {"learned": 0.3, "max_prob": 0.05}]
    opened = tiny.calibrate(tiny.bundle_at(tmp_path / "bundle", source, slots=4), bounds)
    how: Any = {"mode": mode, "thresholds": dict(zip((1, 2, 3), bounds, strict=True)) if mode == "exact" else None}
    prompts = [[3, 1, 4], IDS[:131], [7], IDS[20:60], [5, 5], IDS[:9]]
    batch = opened.batch(slots=3, **how)
    requests = [batch.add(prompt, max_new_tokens=20 + 3 * i) for i, prompt in enumerate(prompts)]
    for _ in batch.run():
        pass
    depths: Counter[int] = Counter()
    for request in requests:
        alone = list(opened.session(**how).generate(request.prompt_ids, max_new_tokens=20 + 3 * request.number))
        assert request.ids == [token.id for token in alone]
        assert request.exit_layers == [token.exit_layer for token in alone]
        depths.update(request.exit_layers)
    assert {1, 3, 4} <= set(depths), depths


GATED = [
    ExitSpec(layer=1, adapter="layer", gates=["predictor", "router"], router=RouterShape(choices=4),
             predictor=PredictorShape(head="few", units=4)),
    ExitSpec(layer=2, adapter="layer", gates=["saturation", "max_prob"]),
    ExitSpec(layer=3, adapter="layer", gates=["predictor", "router", "saturation"],
             predictor=PredictorShape(head="few", units=4)),
]  # fmt: skip
FEW = HeadShape(name="few", kind="shortlist", tokens=list(range(0, tiny.VOCAB, 2)))
BOLD = {"predictor": 0.2, "router": 0.2, "saturation": 0.2, "learned": 0.3, "max_prob": 0.1}
BATCHES = {
    "modules": (tiny.config(), EXITS, "fp32", 1), "gates": (tiny.config(), GATED, "fp32", 1),
    "window": (MODELS["window"], EXITS, "fp32", 2), "int4": (tiny.config(), GATED, "int4", 1),
}  # fmt: skip
ASKED = st.fixed_dictionaries({
    "prompt": st.integers(1, 9) | st.integers(100, 140), "count": st.integers(1, 24), "wait": st.integers(0, 6),
    "depth": st.sampled_from([0, 0, 2, 4]), "how": st.sampled_from([Sampling(), Sampling(temperature=0.8, seed=3)]),
})  # fmt: skip


@pytest.mark.parametrize("kind", BATCHES)
def test_sequences_share_the_passes_of_an_exits_layer(shelf: Any, kind: str) -> None:
    """A batch is its requests alone, whatever joins, leaves, moves, asks or does not ask beside them."""
    model, exits, precision, minimum = BATCHES[kind]
    opened = shelf.bundle(
        model, exits=exits, heads=[FEW], precision=precision, minimum_rows=minimum, slots=5, gain=GAIN
    )
    thresholds = {e.layer: {gate: BOLD[gate] for gate in e.gates} for e in exits}
    seen: Counter[str] = Counter()

    def watch(asker: LayerAsker) -> None:
        run = asker._run

        def counted(range_: Any, taking_part: Any) -> None:
            seen.update(passes=1, shared=len(taking_part) > 1, padded=range_[1] - range_[0] > len(taking_part) > 1)
            run(range_, taking_part)

        asker._run = counted  # type: ignore[method-assign]

    @given(
        asked=st.lists(ASKED, min_size=1, max_size=8), slots=st.integers(1, 5), cap=st.integers(1, 8),
        each_pass=st.sampled_from([0.5, 6.0, 60.0]),
    )  # fmt: skip
    @settings(max_examples=12)
    def check(asked: list[dict[str, Any]], slots: int, cap: int, each_pass: float) -> None:
        how: Any = {"mode": "exact", "thresholds": thresholds, "pending_cap": cap}
        batch = opened.batch(slots=slots, **how)
        for asker in batch._askers:
            if isinstance(asker, LayerAsker):
                asker._each_pass = each_pass
                watch(asker)
        todo = sorted(asked, key=lambda one: one["wait"])
        requests = []
        for number in range(10_000):
            while todo and todo[0]["wait"] <= number:
                one = todo.pop(0)
                requests.append((one, batch.add(
                    IDS[: one["prompt"]], max_new_tokens=one["count"], sampling=one["how"],
                    minimum_depth=one["depth"],
                )))  # fmt: skip
            if not batch.busy and not todo:
                break
            batch.step()
        for one, request in requests:
            session = opened.session(**how, minimum_depth=one["depth"])
            alone = session.generate(request.prompt_ids, max_new_tokens=one["count"], sampling=one["how"])
            list(alone)
            assert request.ids == alone.ids
            seen.update(drafted=request.stats.drafted, rejected=request.stats.rejected)

    check()
    assert min(seen[key] for key in ("shared", "padded", "drafted", "rejected")) > 5, seen


def test_what_the_slots_of_an_exits_layer_say_is_what_one_says_alone(shelf: Any) -> None:
    """The same rows, asked together or apart, in any slots: values, candidates and rows, to the bit."""
    opened = shelf.bundle(exits=GATED, heads=[FEW], slots=5, gain=GAIN)
    many, walks = opened.askers(5, slots=5, each_pass=60.0), [Walk(), Walk(), Walk()]
    alone = [(opened.askers(), Walk()) for _ in range(3)]
    slots, rng = [4, 0, 2], np.random.default_rng(8)
    for exit_ in range(3):
        rows = [rng.standard_normal((n, 32)).astype(np.float32) for n in (3, 1, 9)]
        for slot, mine in zip(slots, rows, strict=True):
            many[exit_].offer(mine, slot)
        whole = joined(walks)
        said = many[exit_](np.stack([mine[-1] for mine in rows]), whole, slots)
        parted(whole, walks)
        for i, (askers, walk) in enumerate(alone):
            askers[exit_].offer(rows[i])
            own = askers[exit_](rows[i][-1:], walk)
            np.testing.assert_array_equal(said.hidden[i], own.hidden[0])
            for gate, value in own.values.items():
                np.testing.assert_allclose(said.values[gate][i], value[0], atol=1e-6)  # gates' weights are inputs
            if own.candidates is not None:
                assert said.candidates is not None
                np.testing.assert_array_equal(said.candidates[i], own.candidates[0])


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_copy_of_the_last_layer_never_drafts_a_wrong_token(shelf: Any, tmp_path: Path, precision: str) -> None:
    """However its cache was caught up, rolled back and passed by."""
    exit_ = ExitSpec(layer=3, adapter="layer", gates=["max_prob"], draft={"max_prob": 0.0})
    source = tiny.checkpoint(tmp_path / "c", gain=GAIN)
    store = open_student(source).store
    inside = "model.layers.3."
    tensors = {f"exit.3.{n.removeprefix(inside)}": store.read(n) for n in store.tensors if n.startswith(inside)}
    tensors["exit.3.final_norm.weight"] = store.read("model.norm.weight")
    save_exits(source, tiny.EarlyExit(exits=[ExitSpec(layer=1, gates=["max_prob"]), exit_]), tensors)
    opened = tiny.open_bundle(tmp_path / "b", source, precision=precision)
    trace = Tracer(opened).trace(IDS)
    np.testing.assert_array_equal(trace.exits[1].token, trace.final.token)
    for early in (None, {"max_prob": 0.05}):
        thresholds = {1: early, 3: {"max_prob": 0.0}}
        exact = opened.session(mode="exact", thresholds=thresholds).generate(IDS[:20], max_new_tokens=60)
        assert [t.id for t in exact] == tiny.tokens(opened, IDS[:20], 60)
        assert exact.stats.drafted > 40
        assert (exact.stats.rejected > 0) == (early is not None), "only the shallow exit is ever wrong"


@pytest.mark.parametrize("cache", ["fp16", "int8"])
def test_narrow_caches_hold_an_exits_layer_too(shelf: Any, cache: str) -> None:
    opened = shelf.bundle(exits=EXITS, gain=GAIN, build={"cache": cache})
    asker = opened.askers()[0]
    asker._caches.make_room(1)
    assert {str(t.dtype) for t in asker._caches.tensors[0].values()} >= {{"fp16": "float16", "int8": "int8"}[cache]}
    thresholds = {e.layer: dict.fromkeys(e.gates, 0.02) for e in EXITS}
    exact = opened.session(mode="exact", thresholds=thresholds).generate(IDS[:20], max_new_tokens=40)
    assert [t.id for t in exact] == tiny.tokens(opened, IDS[:20], 40)
    assert exact.stats.drafted


def test_an_exit_with_a_layer_wants_every_row(shelf: Any) -> None:
    for rule in c.APPROXIMATE:
        with pytest.raises(UsageError, match=f"the rule {rule}"):
            shelf.bundle(exits=EXITS, build={"kv": (rule,)})
    fields = shelf.bundle(exits=EXITS).manifest.model_dump()
    with pytest.raises(ValidationError, match="selected does not go with exits with a layer"):
        Manifest.model_validate(fields | {"kv_rules": ["catch_up", "selected"]})
