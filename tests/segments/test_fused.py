"""ONNX Runtime's fused operators: used where they serve, and blind to how many rows a pass has."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from eecompile.runtime.staircase import Staircase
from eecompile.segments.fused import can_fuse, fuse_skip_norms
from eecompile.student.families import spec_from_config

TOKENS = np.random.default_rng(0).integers(0, tiny.VOCAB, 90).tolist()
MODELS = {
    "groups": tiny.config(head_dim=16),
    "window": tiny.config("mistral", head_dim=16, sliding_window=20),
    "biases": tiny.config(head_dim=16, attention_bias=True, num_key_value_heads=4),
}


def operators(opened: Any) -> set[str]:
    """The kinds of nodes in the first segment."""
    path: Path = opened.files.path / opened.manifest.graphs.segments[0].path
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


@pytest.mark.parametrize(("settings", "fused"), [(tiny.config(head_dim=16), True), (tiny.config(), False)])
def test_which_graphs_are_fused(shelf: Any, settings: tiny.Config, fused: bool) -> None:
    found = operators(shelf.bundle(settings))
    assert ("GroupQueryAttention" in found) is fused
    assert ("TensorScatter" in found) is not fused
    assert "SkipSimplifiedLayerNormalization" in found


@pytest.mark.parametrize(
    ("settings", "fusible"),
    [
        (tiny.config(head_dim=16), True),
        (tiny.config(head_dim=24), False),
        (tiny.config("qwen3", head_dim=16), False),
        (tiny.config("phi", head_dim=None, hidden_size=128, partial_rotary_factor=0.5), False),
    ],
)
def test_what_can_be_fused(settings: tiny.Config, fusible: bool) -> None:
    assert can_fuse(spec_from_config(settings)) is fusible


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
@given(model=st.sampled_from(sorted(MODELS)), widths=st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_rows_do_not_depend_on_the_width_of_their_pass(
    shelf: Any, precision: str, model: str, widths: list[int]
) -> None:
    opened = shelf.bundle(MODELS[model], [2], precision=precision)
    stairs, rows, start = Staircase(opened.manifest, opened.graphs), [], 0
    for width in widths:
        piece = TOKENS[start : start + width]
        if piece:
            stairs.append(piece)
            rows.append(stairs.run_full().copy())
            start += len(piece)
    whole = Staircase(opened.manifest, opened.graphs)
    whole.append(TOKENS[:start])
    np.testing.assert_array_equal(np.concatenate(rows), whole.run_full())


def node(kind: str, inputs: list[str], output: str) -> onnx.NodeProto:
    attributes = {"epsilon": 1e-5} if kind == "RMSNormalization" else {}
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def test_a_sum_and_its_norm_become_one_node_where_the_sum_stood() -> None:
    nodes = [node("Add", ["x", "y"], "s"), node("Relu", ["s"], "r"), node("RMSNormalization", ["s", "w"], "n")]
    rewritten, modified = fuse_skip_norms(nodes, {"w"})
    assert modified
    assert [n.op_type for n in rewritten] == ["SkipSimplifiedLayerNormalization", "Relu"]
    assert list(rewritten[0].input) == ["x", "y", "w"]
    assert [rewritten[0].output[0], rewritten[0].output[3]] == ["n", "s"]


@pytest.mark.parametrize("constants", [{"w", "y"}, set()])
def test_a_bias_is_no_residual_and_a_computed_scale_may_come_too_late(constants: set[str]) -> None:
    nodes = [node("Add", ["x", "y"], "s"), node("RMSNormalization", ["s", "w"], "n")]
    assert fuse_skip_norms(nodes, constants) == (nodes, False)


def test_only_the_first_norm_of_a_sum_is_fused() -> None:
    norms = [node("RMSNormalization", ["s", "w"], name) for name in ("n", "m")]
    rewritten, _ = fuse_skip_norms([node("Add", ["x", "y"], "s"), *norms], {"w"})
    assert [n.op_type for n in rewritten] == ["SkipSimplifiedLayerNormalization", "RMSNormalization"]
