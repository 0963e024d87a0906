"""A plain checkpoint tied into a recursive one: the formulas by hand, and torch, numpy and the bundle say the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
import torch
from eecompile_training.recursive import load_recursive
from eecompile_training.tying import own_sources, tie_layers, truncated_svd

from eecompile.errors import UsageError
from eecompile.runtime.trace import Tracer
from eecompile.student.loops import Loops
from eecompile.student.student import open_student

pytestmark = pytest.mark.torch
ALL: Any = ["q", "k", "v", "o", "gate", "up", "down"]
IDS = [5, 9, 2, 77, 31, 8, 64, 3]


def six_layers(path: Path, family: str = "llama", **changes: Any) -> Path:
    if family == "gpt2":
        return tiny.checkpoint(path, tiny.gpt2(n_layer=6, **changes), gain=0.4)
    return tiny.checkpoint(path, tiny.config(family, num_hidden_layers=6, **changes), gain=0.4)


def test_which_layers_share_weights() -> None:
    loops = Loops(prelude=1, block=3, loops=2)
    assert own_sources(loops, 8, "average") == [[0], [1, 4], [2, 5], [3, 6], [7]]
    assert own_sources(loops, 8, "stepwise") == [[0], [1], [3], [6], [7]]  # of 1..6 the first, one between, the last
    assert own_sources(Loops(prelude=0, block=1, loops=4), 4, "stepwise") == [[0]]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_truncated_svd_is_the_best_of_its_rank(rows: int, columns: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns))
    a, b = truncated_svd(matrix.astype(np.float32), rank)
    assert (a.shape, b.shape) == ((rank, columns), (rows, rank))
    left = np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2)  # Eckart and Young, in float64
    assert np.sum((matrix - b.astype(np.float64) @ a) ** 2) == pytest.approx(left, abs=1e-4)
    kept = a[: min(rank, rows, columns)].astype(np.float64)
    np.testing.assert_allclose(kept @ kept.T, np.eye(len(kept)), atol=1e-5)  # A = V^T: orthonormal; B = U S


def test_the_average_and_the_residual_by_hand(tmp_path: Path) -> None:
    source = six_layers(tmp_path / "c")
    plain, loops = open_student(source), Loops(prelude=1, block=2, loops=2, rank=3, projections=["q", "down"])
    tied = tie_layers(source, tmp_path / "s", loops, "average")
    names = plain.spec.names
    for own, layers in ((1, (1, 3)), (2, (2, 4))):
        for name in ("q", "down", "up"):
            weight = getattr(names, name) + ".weight"
            parts = [plain.store.read(weight.format(i=n)).astype(np.float64) for n in layers]
            mean = (parts[0] + parts[1]) / 2
            np.testing.assert_allclose(tied.own_store.read(weight.format(i=own)), mean, atol=1e-6)
            for loop, n in enumerate(layers):
                left = plain.store.read(weight.format(i=n)) - mean
                u, s, v = np.linalg.svd(left)
                expected = mean + (u[:, :3] * s[:3]) @ v[:3] if name != "up" else mean
                run = 1 + 2 * loop + own - 1
                np.testing.assert_allclose(tied.store.read(weight.format(i=run)), expected, atol=1e-5)
    np.testing.assert_array_equal(
        tied.store.read("model.layers.5.mlp.up_proj.weight"), plain.store.read("model.layers.5.mlp.up_proj.weight")
    )


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_a_full_rank_gives_the_projections_back(tmp_path: Path, family: str) -> None:
    """Only norms and biases are still shared."""
    roles = [r for r in ALL if r != "gate" or family == "llama"]
    loops = Loops(prelude=1, block=2, loops=2, rank=64, projections=roles)
    source = six_layers(tmp_path / "c", family)
    tied, plain = tie_layers(source, tmp_path / "s", loops, "average"), open_student(source)
    names = plain.spec.names
    for layer in range(6):
        for role in roles:
            name = getattr(names, role).format(i=layer) + ".weight"
            np.testing.assert_allclose(tied.store.read(name), plain.store.read(name), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "phi3"])
@pytest.mark.parametrize("init", ["stepwise", "average"])
def test_torch_and_the_bundle_compute_the_same_model(tmp_path: Path, family: str, init: Any) -> None:
    roles = ["q", "v", "o", "down"] if init == "average" else []
    loops = Loops(prelude=1, block=2, loops=2, rank=len(roles), projections=roles)
    tie_layers(six_layers(tmp_path / "c", family), tmp_path / "s", loops, init)
    found = load_recursive(tmp_path / "s")
    with torch.inference_mode():
        out = found.model(torch.tensor([IDS]), output_hidden_states=True)
    bundle = tiny.open_bundle(tmp_path / "b", tmp_path / "s", found.ends()[:-1], precision="fp32")
    trace = Tracer(bundle, boundaries=True).trace(IDS)
    assert trace.boundaries is not None
    for at, rows in zip(found.ends()[:-1], trace.boundaries, strict=False):
        np.testing.assert_allclose(out.hidden_states[at][0].numpy(), rows, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(out.logits[0].numpy(), tiny.head_logits(bundle, trace.boundaries[-1]), atol=1e-3)


def test_gradients_of_all_loops_meet_in_one_weight(tmp_path: Path) -> None:
    loops = Loops(prelude=0, block=2, loops=3, rank=2, projections=["v"])
    tie_layers(six_layers(tmp_path / "c"), tmp_path / "s", loops, "average")
    found = load_recursive(tmp_path / "s")
    assert len({id(p) for p in found.model.parameters()}) == len(found.trained())
    found.model(torch.tensor([IDS])).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.trained())
    own, factors = found.tensors()
    student = open_student(tmp_path / "s")
    assert student.exits.store is not None
    assert set(own) == set(student.own_spec.tensors())
    for name, tensor in factors.items():
        np.testing.assert_array_equal(tensor, student.exits.store.read(name))


def test_what_cannot_be_tied(tmp_path: Path) -> None:
    source = six_layers(tmp_path / "c")
    with pytest.raises(UsageError, match="are 7 layers, the checkpoint has 6"):
        tie_layers(source, tmp_path / "a", Loops(prelude=1, block=3, loops=2), "average")
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 2
    mixed = six_layers(tmp_path / "m", "qwen2", head_dim=None, use_sliding_window=True, sliding_window=20,
                       layer_types=kinds)  # fmt: skip
    with pytest.raises(UsageError, match="differ in windows"):
        tie_layers(mixed, tmp_path / "b", Loops(prelude=0, block=2, loops=3), "average")
    tie_layers(mixed, tmp_path / "d", Loops(prelude=0, block=3, loops=2), "average")
    with pytest.raises(UsageError, match="repeats layers already"):
        tie_layers(tmp_path / "d", tmp_path / "e", Loops(prelude=0, block=1, loops=2), "average")
