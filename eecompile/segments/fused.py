"""ONNX Runtime's fused operators, where they compute a row the same in passes of every width.

A one-row pass costs more in operators than in arithmetic: rotary embedding, cache update, mask and attention are a
dozen standard nodes a layer, or one GroupQueryAttention. That operator multiplies a lone row by another kernel than
two rows or more, whose last bits differ, so it always gets one row of padding more than its pass has. The padding row
is written behind the real ones, where nobody looks, and overwritten by the next pass.

The operator takes several rows of one sequence, or one row of several, never several of several: it serves bundles of
one slot. In a bundle for batches attention is made of standard operators.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from eecompile import contract as c
from eecompile.segments.graph import RUNTIME_DOMAIN, GraphWriter
from eecompile.student.model import DecoderSpec

_INT32 = onnx.TensorProto.INT32


@dataclass(frozen=True)
class Rotary:
    """Tables of cosines and sines [S, d / 2]."""

    cos: str
    sin: str
    interleaved: bool


@dataclass(frozen=True)
class GroupQuery:
    """Writes fused attention into one graph; `ends` and `total` are the passes' lengths, made once. positions: of the
    rows and the one of padding, where they are not their places in the cache."""

    ends: str
    total: str
    positions: str = ""

    @classmethod
    def of(cls, g: GraphWriter, *, compact: bool = False) -> "GroupQuery":
        """Compute from positions [1, R] and write_index [1] where the padding row of this pass stands."""
        rows = g.op("Shape", c.POSITIONS, start=1, end=2)
        last = g.op("Add", c.WRITE_INDEX, rows)
        total = g.op("Squeeze", g.op("Add", last, g.constant([1])))
        positions = g.op("Pad", c.POSITIONS, g.constant([0, 0, 0, 1])) if compact else ""
        return cls(g.op("Cast", last, to=_INT32), g.op("Cast", total, to=_INT32), positions)

    def attend(
        self, g: GraphWriter, projected: str, cache: int, rotary: Rotary | None, *,
        heads: int, kv_heads: int, head_dim: int, scale: float, window: int | None, softcap: float,
    ) -> str:  # fmt: skip
        """projected [1, R, (H + 2 KV) d], queries, keys, values side by side -> [1, R, H d].

        cache: number of the caches [B, KV, T, d], B = 1, updated in place. window: tokens that a row sees, itself
        included; None is all of them. softcap: bound of the scores, 0 for none.
        """
        shape = ("B", kv_heads, "T", head_dim)
        caches = [c.cache_name(kind, cache) for kind in ("key", "value")]
        outputs = [c.cache_out_name(kind, cache) for kind in ("key", "value")]
        for name in caches:
            g.input(name, "float32", *shape)
        turned: dict[str, Any] = {"do_rotary": 0}
        tables = []
        if rotary is not None:
            tables, turned = [rotary.cos, rotary.sin], {"do_rotary": 1, "rotary_interleaved": int(rotary.interleaved)}
            tables += [self.positions] if self.positions else []
        nothing = g.constant(np.zeros((1, 1, (heads + 2 * kv_heads) * head_dim), np.float32), np.float32)
        padded = g.op("Concat", projected, nothing, axis=1)
        mixed = g.ops(
            "GroupQueryAttention", 3, padded, "", "", *caches, self.ends, self.total, *tables,
            named=(f"mixed_{cache}", *outputs), domain=RUNTIME_DOMAIN, num_heads=heads, kv_num_heads=kv_heads,
            scale=scale, local_window_size=-1 if window is None else window, softcap=softcap, **turned,
        )[0]  # fmt: skip
        for name in outputs:
            g.output(name, name, "float32", *shape)
        return g.op("Slice", mixed, g.constant([0]), g.constant([-1]), g.constant([1]))


def can_fuse(spec: DecoderSpec, *, compact: bool = False) -> bool:
    """Whether the operator can compute this model's attention: heads of multiples of 16, rotated whole or not at all,
    and queries and keys as they were projected. In compact caches its windows would count rows, not positions."""
    whole = all(rope is None or rope.rotated(spec.head_dim) == spec.head_dim for rope in spec.ropes)
    windowed = compact and any(window is not None for window in spec.windows)
    return spec.head_dim % 16 == 0 and spec.qk_norm is None and whole and not windowed


def fuse_skip_norms(nodes: list[onnx.NodeProto], constants: Container[str]) -> tuple[list[onnx.NodeProto], bool]:
    """Make each sum of two computed values and its RMS normalisation one node that gives both.

    Returns (nodes, modified). The new node stands where the sum stood: its other input, the norm's scale, is one of the
    graph's `constants`.
    """
    sums = {
        n.output[0]: i for i, n in enumerate(nodes) if n.op_type == "Add" and not any(x in constants for x in n.input)
    }
    fused: dict[int, onnx.NodeProto] = {}
    gone: set[int] = set()
    for i, node in enumerate(nodes):
        total = sums.get(node.input[0]) if node.op_type == "RMSNormalization" else None
        if total is not None and total not in fused and node.input[1] in constants:
            fused[total] = _skip_norm(nodes[total], node)
            gone.add(i)
    return [fused.get(i, node) for i, node in enumerate(nodes) if i not in gone], bool(fused)


def _skip_norm(total: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
    return onnx.helper.make_node(
        "SkipSimplifiedLayerNormalization", [*total.input, norm.input[1]], [norm.output[0], "", "", total.output[0]],
        name=norm.name, domain=RUNTIME_DOMAIN, epsilon=epsilon,
    )  # fmt: skip
