"""Cutting at exits: which layers go where, what is stored once, and the chain equals the uncut graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

from eecompile import contract as c
from eecompile.bundle.digest import file_sha256
from eecompile.engines.ort import OrtEngine
from eecompile.runtime import Bundle
from eecompile.runtime.trace import Tracer
from eecompile.segments.plan import cuts
from eecompile.segments.split import Cut, write_segments
from eecompile.student.exits import ExitSpec
from eecompile.student.student import open_student

IDS = np.random.default_rng(2).integers(0, tiny.VOCAB, 50).tolist()


def test_cuts() -> None:
    assert cuts(30, [18, 22]) == [range(18), range(18, 22), range(22, 30)]
    assert cuts(4, []) == [range(4)]
    assert cuts(3, [1, 2]) == [range(1), range(1, 2), range(2, 3)]


def test_progress_names_every_graph(tmp_path: Path) -> None:
    said: list[str] = []
    student = open_student(tiny.checkpoint(tmp_path / "checkpoint"), [1, 3])
    write_segments(Cut(student, "fp32", 16), tmp_path / "out", progress=said.append)
    assert said == ["embed", "segment 0", "segment 1", "segment 2", "exit 0", "exit 1", "head"]


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    student = open_student(tiny.checkpoint(tmp_path / "checkpoint"), [2])
    written = write_segments(Cut(student, "int8", 16), tmp_path / "out")
    found = {f"segments/{p.name}": file_sha256(p) for p in (tmp_path / "out" / "segments").glob("*.weights")}
    assert written.hashes == found


def test_segments_hold_their_layers_and_no_others(shelf: Any) -> None:
    opened = shelf.bundle(at=[1, 3])
    layers = []
    for info in opened.manifest.graphs.segments:
        graph = onnx.load(opened.files.path / info.path, load_external_data=False).graph
        layers.append(
            sorted({int(t.name.split(".")[2]) for t in graph.initializer if t.name.startswith("model.layers")})
        )
    assert layers == [[0], [1, 2], [3]]
    assert [info.layers for info in opened.manifest.graphs.segments] == opened.manifest.caches == [1, 2, 1]
    assert [(s.segment, s.cache, s.exit) for s in opened.manifest.schedule] == [(0, 0, 0), (1, 1, 1), (2, 2, None)]


def stored(bundle: Bundle) -> int:
    """Bytes of all weight files."""
    return sum(p.stat().st_size for p in (bundle.files.path / "segments").glob("*.weights"))


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_stored_once(shelf: Any, tied: bool) -> None:
    """Exits share the final norm, segments the rope tables, the uncut graph all; a tied head the embedding."""
    opened = shelf.bundle(tiny.config(tie_word_embeddings=tied), at=[1, 2, 3], context=64)
    weights = 4 * opened.manifest.model.parameters
    tables = 2 * 4 * (64 + opened.manifest.slack) * 4
    assert weights + tables <= stored(opened) <= weights + tables + 64 * 60


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 16), ("int8", 9), ("int4", 5)])
def test_a_smaller_precision_takes_less(shelf: Any, precision: str, bits: int) -> None:
    opened = shelf.bundle(tiny.config(hidden_size=64, intermediate_size=128), precision=precision, context=16)
    table = tiny.VOCAB * 64
    assert stored(opened) < ((opened.manifest.model.parameters - table) * bits + table * 16) / 8 * 1.08


@pytest.mark.parametrize("head_dim", [8, 16])  # of standard operators, and fused
@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_the_chain_equals_the_uncut_graph_to_the_bit(shelf: Any, precision: str, head_dim: int) -> None:
    opened = shelf.bundle(tiny.config(head_dim=head_dim), at=[1, 2, 3], precision=precision)
    manifest = opened.manifest
    info = manifest.graphs.reference
    assert info is not None
    rows, model = len(IDS), manifest.model
    shape = (1, model.kv_heads, 64, model.head_dim)
    buffers: dict[str, Any] = {
        c.TOKEN_IDS: np.array([IDS]), c.POSITIONS: np.arange(rows)[None], c.WRITE_INDEX: np.zeros(1, np.int64),
        c.THRESHOLDS: np.tile(np.array(c.NO_BOUND, np.float32), (rows, 1)),
        c.TOKEN: np.zeros(rows, np.int64), c.MAX_PROB: np.zeros(rows, np.float32),
        c.ENTROPY: np.zeros(rows, np.float32),
    }  # fmt: skip
    for layer in range(model.layers):
        for kind in ("key", "value"):
            cache = np.zeros(shape, np.float32)
            buffers |= {c.cache_name(kind, layer): cache, c.cache_out_name(kind, layer): cache}
    OrtEngine(opened.files.path / info.path, info).bind(buffers)()
    chain = Tracer(opened).trace(IDS).final
    np.testing.assert_array_equal(chain.token, buffers[c.TOKEN])
    np.testing.assert_array_equal(chain.max_prob, buffers[c.MAX_PROB])
    np.testing.assert_array_equal(chain.entropy, buffers[c.ENTROPY])


def test_a_plain_exit_says_what_a_shallower_model_would(shelf: Any, tmp_path: Path) -> None:
    settings = tiny.config()
    tensors = {
        n: t for n, t in tiny.weights(settings).items() if not n.startswith(("model.layers.2", "model.layers.3"))
    }
    shallow = tiny.checkpoint(tmp_path / "checkpoint", {**settings, "num_hidden_layers": 2}, tensors)
    early = Tracer(shelf.bundle(settings, at=[2])).trace(IDS)
    whole = Tracer(tiny.open_bundle(tmp_path / "bundle", shallow)).trace(IDS).final
    np.testing.assert_array_equal(early.exits[0].token, whole.token)
    np.testing.assert_allclose(early.exits[0].max_prob, whole.max_prob, atol=1e-5)
    assert (early.exits[0].token != early.final.token).any()


def test_gates_and_adapters_equal_numpy(tmp_path: Path) -> None:
    exits = [
        ExitSpec(layer=1, adapter="affine", gates=["learned", "max_prob"], gate_units=5),
        ExitSpec(layer=3, adapter="norm", gates=["learned"], gate_units=2),
    ]
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "checkpoint"), exits)
    opened = tiny.open_bundle(tmp_path / "bundle", source)
    student = open_student(source)
    trace = Tracer(opened, boundaries=True).trace(IDS * 3)  # more rows than a pass has
    assert trace.boundaries is not None
    norm, head = (student.store.read(n) for n in ("model.norm.weight", "lm_head.weight"))
    for spec, found, hidden in zip(exits, trace.exits, trace.boundaries, strict=False):
        normed = hidden / np.sqrt(np.square(hidden).mean(axis=-1, keepdims=True) + 1e-5) * norm
        gate = student.exits.gate(spec)
        assert gate is not None
        score = np.tanh(normed @ gate["w1"] + gate["b1"]) @ gate["w2"] + gate["b2"]
        np.testing.assert_allclose(found.confidence, 1 / (1 + np.exp(-score[:, 0])), atol=1e-5)
        assert found.confidence.std() > 0.01
        if spec.adapter == "affine":
            weight, bias = (student.exits.tensor(spec.layer, f"adapter.{part}") for part in ("weight", "bias"))
            normed = normed @ weight + bias
        logits = normed @ head.T
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.max_prob, probability.max(axis=1), atol=1e-4)
        np.testing.assert_array_equal(found.token, logits.argmax(axis=1))


def test_the_manifest_describes_the_graphs(shelf: Any) -> None:
    """Inputs and outputs in the manifest are those in the files, in name, type and shape."""
    opened = shelf.bundle(at=[1, 3])
    document = json.loads((opened.files.path / "manifest.json").read_text())
    graphs = document["graphs"]
    assert len(graphs["segments"]) == 3
    for info in [graphs["embed"], *graphs["segments"], *graphs["exits"], graphs["head"], graphs["reference"]]:
        graph = onnx.load(opened.files.path / info["path"], load_external_data=False).graph
        for values, described in ((graph.input, info["inputs"]), (graph.output, info["outputs"])):
            assert [v.name for v in values] == [t["name"] for t in described]
            for value, t in zip(values, described, strict=True):
                dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                assert dims == t["shape"]
