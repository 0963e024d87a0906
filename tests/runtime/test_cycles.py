"""Cyclic gates: against transformers row by row, exact mode, passes of any width, and what is refused."""

import json
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

from eecompile.bundle.manifest import Manifest
from eecompile.calibrate.exits import fit_exits
from eecompile.errors import UsageError
from eecompile.pipeline import build_plain
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.trace import Tracer
from eecompile.student.cycles import CycleSpec
from eecompile.student.exits import EarlyExit, load_exits, save_exits
from eecompile.student.student import open_student
from eecompile.verify import verify_bundle

IDS = np.random.default_rng(4).integers(0, tiny.VOCAB, 40).tolist()
CYCLES = {
    "middle": [CycleSpec(first=1, layer=3, repeats=2, threshold=0.45)],
    "all": [CycleSpec(first=0, layer=2), CycleSpec(first=2, layer=4, repeats=3)],
}


def cyclic(path: Path, cycles: Sequence[CycleSpec], config: tiny.Config | None = None, gain: float = 0.35) -> Path:
    """A checkpoint whose gates are undecided enough that some rows run again and some do not."""
    rng, tensors = np.random.default_rng(1), {}
    for name, shape in [pair for cycle in cycles for pair in cycle.shapes(32).items()]:
        tensors[name] = (rng.standard_normal(shape) * (0.2 if "weight" in name else 0.5)).astype(np.float32)
    source = tiny.checkpoint(path, config, gain=gain)
    save_exits(source, EarlyExit(exits=[], cycles=list(cycles)), tensors)
    return source


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """By cycles and precision, with an exit after layer 2 or 3."""
    root, found = tmp_path_factory.mktemp("cycles"), {}
    for name, cycles in CYCLES.items():
        source = cyclic(root / name, cycles, tiny.config(head_dim=16 if name == "all" else 8))
        for precision in ("fp32", "int4"):
            out = root / f"{name}-{precision}"
            found[name, precision] = tiny.open_bundle(out, source, [3 if name == "middle" else 2], precision=precision)
    return found


def said_by_transformers(source: Path, ids: Sequence[int], cycles: Sequence[CycleSpec]) -> tuple[Any, Counter[int]]:
    """Finished rows, one row at a time: each layer sees of earlier rows what it was given in their last run. And how
    often rows ran again."""
    import torch

    model, tensors = tiny.hugging_face(source), open_student(source).exits.store
    assert tensors is not None
    inner = model.model
    with torch.inference_mode():
        embedded = inner.embed_tokens(torch.tensor([list(ids)]))
        rope = inner.rotary_emb(embedded, torch.arange(len(ids))[None])
        given = [torch.zeros_like(embedded) for _ in inner.layers]
        blocks: list[tuple[int, int, CycleSpec | None]] = []
        for layer in range(len(inner.layers)):
            cycle = next((c for c in cycles if c.first <= layer < c.layer), None)
            if cycle is None or cycle.first == layer:
                blocks.append((layer, cycle.layer if cycle else layer + 1, cycle))
        again: Counter[int] = Counter()
        rows = []
        for r in range(len(ids)):
            row, seen = embedded[:, r], slice(0, r + 1)
            mask = torch.full((r + 1, r + 1), -1e30).triu(1)[None, None]
            where = {"attention_mask": mask, "position_embeddings": tuple(t[:, seen] for t in rope)}
            for first, last, cycle in blocks:
                for run in range(1 + (cycle.repeats if cycle else 0)):
                    for layer in range(first, last):
                        given[layer][:, r] = row
                        out = inner.layers[layer](given[layer][:, seen], **where)
                        row = (out[0] if isinstance(out, tuple) else out)[:, r].clone()
                    if cycle is None or run == cycle.repeats:
                        break
                    think, weight, bias = (
                        torch.from_numpy(tensors.read(f"cycle.{last}.{part}")) for part in ("think", "weight", "bias")
                    )
                    if torch.sigmoid(row[0] @ weight + bias).item() >= cycle.threshold:
                        break
                    again[last] += 1
                    row = row + think
            rows.append(inner.norm(row)[0].numpy())
    return np.stack(rows), again


@pytest.mark.torch
@pytest.mark.parametrize("name", CYCLES)
def test_each_row_runs_as_often_as_its_gate_says(
    bundles: dict[tuple[str, str], Bundle], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("transformers")
    opened = bundles[name, "fp32"]
    source = cyclic(tmp_path / "c", CYCLES[name], tiny.config(head_dim=16 if name == "all" else 8))
    expected, again = said_by_transformers(source, IDS, CYCLES[name])
    trace = Tracer(opened, boundaries=True).trace(IDS)
    assert trace.boundaries is not None
    assert np.abs(trace.boundaries[-1] - expected).max() < 1e-4 * np.abs(expected).max()
    for cycle in CYCLES[name]:
        assert 5 < again[cycle.layer] < len(IDS) * cycle.repeats - 5, "some rows run again, some do not"


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", CYCLES)
def test_a_row_does_not_depend_on_its_pass(bundles: dict[tuple[str, str], Bundle], name: str, precision: str) -> None:
    """Keys and values included: pending rows that run together are each gated on their own."""
    opened, kept = bundles[name, precision], []
    for widths in ([40], [1] * 40, [1, 7, 2, 20, 10], [39, 1]):
        stairs, rows = Staircase(opened.manifest, opened.graphs), []
        for width in widths:
            stairs.append(IDS[stairs.length : stairs.length + width])
            rows.append(stairs.run_full().copy())
        kept.append([np.concatenate(rows), *tiny.caches(stairs, stairs.filled)])
    for other in kept[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(kept[0], other, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_exact_is_full(bundles: dict[tuple[str, str], Bundle], precision: str) -> None:
    seen: Counter[str] = Counter()

    @given(
        name=st.sampled_from(sorted(CYCLES)), cap=st.integers(1, 8), bound=st.sampled_from([0.0, 0.02, 0.1]),
        prompt=st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=40),
        how=st.sampled_from([Sampling(), Sampling(temperature=0.8, seed=3)]),
    )  # fmt: skip
    @settings(max_examples=25)
    def check(name: str, cap: int, bound: float, prompt: list[int], how: Sampling) -> None:
        opened = bundles[name, precision]
        thresholds = {e.layer: {"max_prob": bound} for e in opened.manifest.exits}
        full = opened.session().generate(prompt, max_new_tokens=16, sampling=how)
        exact = opened.session(mode="exact", thresholds=thresholds, pending_cap=cap).generate(
            prompt, max_new_tokens=16, sampling=how
        )
        assert [t.id for t in exact] == [t.id for t in full]
        seen.update(drafted=exact.stats.drafted, kept=exact.stats.drafted - exact.stats.rejected)
        seen.update(again=full.stats.layer_rows - 4 * (len(prompt) + 15))

    check()
    assert min(seen[key] for key in ("drafted", "kept", "again")) > 50, seen


def test_verify_holds_it_against_the_numpy_model(tmp_path: Path) -> None:
    source = cyclic(tmp_path / "c", CYCLES["middle"])
    path = tiny.bundle_at(tmp_path / "b", source, [3])
    report = verify_bundle(path, checkpoint=source, prompts=[IDS, [1, 2]], tokens=6)
    assert [check.name for check in report.checks if not check.passed] == []
    assert "cyclic gates" in report.references[1]
    assert Bundle.open(path).manifest.graphs.reference is None


def test_fitting_leaves_the_gates(tmp_path: Path) -> None:
    source = cyclic(tmp_path / "c", CYCLES["middle"], gain=0.25)
    rows = np.random.default_rng(0).integers(0, tiny.VOCAB, (120, 12))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in rows))
    fit_exits(source, [3], tmp_path / "d.jsonl", tmp_path / "s", risk=0.3, build_bundle=build_plain)
    assert load_exits(tmp_path / "s").schema.cycles == CYCLES["middle"]
    np.testing.assert_array_equal(open_student(tmp_path / "s").cycles[0].think, open_student(source).cycles[0].think)


@pytest.mark.parametrize(
    ("cycles", "at", "message"),
    [
        ([CycleSpec(first=1, layer=3)], [2], "exit 2 is inside a block"),
        ([CycleSpec(first=1, layer=5)], [], "overlaps another or is outside 4 layers"),
        ([CycleSpec(first=0, layer=2), CycleSpec(first=1, layer=3)], [], "overlaps another"),
    ],
)
def test_blocks_that_cannot_repeat(tmp_path: Path, cycles: list[CycleSpec], at: list[int], message: str) -> None:
    source = cyclic(tmp_path / "c", cycles)
    with pytest.raises(UsageError, match=message):
        open_student(source, at)


def test_gates_have_to_be_there_and_finite(tmp_path: Path) -> None:
    [cycle] = CYCLES["middle"]
    source = cyclic(tmp_path / "c", [cycle])
    schema = EarlyExit(exits=[], cycles=[cycle])
    save_exits(source, schema, {})
    with pytest.raises(UsageError, match="no weights"):
        open_student(source)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in cycle.shapes(32).items()}
    save_exits(source, schema, {**tensors, "cycle.3.bias": np.array([np.nan], np.float32)})
    with pytest.raises(UsageError, match=r"cycle\.3\.bias is not finite"):
        open_student(source)


@pytest.mark.parametrize(
    ("cycle", "message"),
    [
        ({"weights": "segments/none.weights"}, "none.weights is not a file of 260 bytes"),
        ({"weights": "segments/head.weights"}, "head.weights is not a file of 260 bytes"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"threshold": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_manifest_with_another_gate_is_refused(
    bundles: dict[tuple[str, str], Bundle], cycle: dict[str, Any], message: str
) -> None:
    fields = bundles["all", "fp32"].manifest.model_dump()
    fields["schedule"][0]["cycle"].update(cycle)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(fields)


def test_a_gate_may_not_read_normalised_rows(bundles: dict[tuple[str, str], Bundle]) -> None:
    fields = bundles["all", "fp32"].manifest.model_dump()
    fields["schedule"][-1]["cycle"] = fields["schedule"][0]["cycle"]
    with pytest.raises(ValidationError, match="the last step gives normalised rows"):
        Manifest.model_validate(fields)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_sequences_of_a_batch_run_again_on_their_own(tmp_path: Path, precision: str) -> None:
    source = cyclic(tmp_path / "c", CYCLES["middle"])
    opened = tiny.open_bundle(tmp_path / "b", source, [3], precision=precision, slots=4)
    prompts = [IDS, [3], IDS[5:12], [9, 9], IDS[:30]]
    for how in ({"mode": "full"}, {"mode": "exact", "thresholds": {3: {"max_prob": 0.1}}}):
        batch = opened.batch(slots=3, **how)  # type: ignore[arg-type]
        requests = [batch.add(prompt, max_new_tokens=12 + 3 * i) for i, prompt in enumerate(prompts)]
        for _ in batch.run():
            pass
        for request in requests:
            assert request.ids == tiny.tokens(opened, request.prompt_ids, 12 + 3 * request.number)
