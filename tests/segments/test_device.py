"""A device's graphs compute what the bundle's own do: in every family, dialect and type, for every kind of graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from commands import cli, cli_json

from eecompile import contract as c
from eecompile.bundle.factors import read_factors
from eecompile.bundle.manifest import DeviceGraphs, Manifest
from eecompile.bundle.read import read_bundle
from eecompile.engines.plan import read_plan
from eecompile.errors import UsageError
from eecompile.pipeline import BuildOptions, build, plan, stage_count
from eecompile.segments.device import device_form
from eecompile.segments.passes.check import NEWEST
from eecompile.shapes import HeadShape, PredictorShape, RouterShape
from eecompile.student.exits import ExitSpec
from eecompile.student.loops import Loops
from eecompile.student.student import open_student
from eecompile.target import load_target, target_names
from eecompile.verify.compare import Comparator, measure_with_numpy
from eecompile.verify.device import Pass, Runner, compare_device, is_score, largest_difference

TARGETS = {"modern": "h100", "classic": "jetson-orin-jp6"}
IDS = np.random.default_rng(0).integers(0, tiny.VOCAB, 24).tolist()
COMPARE = Comparator("numpy", measure_with_numpy)
SAME = 1e-4
FAMILIES = [
    "llama", "llama-every-head-its-keys", "gpt2", "gpt_neox", "phi", "gemma2", "gemma3", "qwen3", "olmo2-biases",
    "starcoder2", "cohere", "cohere2", "granite", "phi3-groups", "smollm3-window", "mistral-window",
]  # fmt: skip
BOUNDED = ["gemma2", "gemma3-new", "qwen3"]
HEADS = [
    HeadShape(name="thin", kind="low_rank", rank=32, bias=True),
    HeadShape(name="few", kind="shortlist", tokens=[5, 90, 17, 3, 64, 127, 0, 31, 32]),
]
EXITS = [
    ExitSpec(layer=1, adapter="affine", gates=["router", "predictor", "saturation"], head="few",
             router=RouterShape(choices=3, units=5), predictor=PredictorShape(head="few", units=7)),
    ExitSpec(layer=2, adapter="mlp", gates=["learned", "max_prob"], gate_units=3, head="thin"),
    ExitSpec(layer=3, adapter="layer", gates=["saturation", "router"], router=RouterShape(choices=2)),
]  # fmt: skip


def built(out: Path, source: Path, dialect: str, at: Any = (), **options: Any) -> tuple[Path, Manifest, DeviceGraphs]:
    """A bundle for a device of that dialect, for two sequences, read back."""
    student = open_student(source, at)
    build(student, load_target(TARGETS[dialect]), out, BuildOptions(slots=2, **{"cache": "fp32", **options}))
    manifest = read_bundle(out).manifest
    assert manifest.device is not None
    return out, manifest, manifest.device


def errors(found: dict[str, Any]) -> dict[str, float]:
    """The largest error at each place, over the largest magnitude of its row; of decisions the largest."""
    sizes = {}
    for name, (actual, expected) in found.items():
        if is_score(name):
            sizes[name] = largest_difference(actual, expected)
        else:
            sizes[name] = COMPARE(actual, expected, {"largest": np.inf})["largest"][0]
    return sizes


@pytest.mark.parametrize(
    ("name", "dialect"), [*((name, "classic") for name in FAMILIES), *((name, "modern") for name in BOUNDED)]
)
def test_float32_in_every_family(shelf: Any, tmp_path: Path, name: str, dialect: str) -> None:
    """Prefill, single rows and ragged slots; windows, bounded scores, shared keys, norms of queries, all rotations.

    Of the modern dialect those that a pass changes: without one, graphs in float32 are the bundle's own.
    """
    source = shelf.checkpoint(tiny.variants()[name])
    found = errors(compare_device(*built(tmp_path / "b", source, dialect, [1, 3], precision="fp32"), IDS, 2))
    assert {"segment 0", "segment 2", "exit 1 exit_hidden", "head", "head's decision"} <= set(found)
    assert max(found.values()) <= SAME, found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("dialect", TARGETS)
def test_float16_is_as_far_off_as_float16_is(shelf: Any, tmp_path: Path, name: str, dialect: str) -> None:
    source = shelf.checkpoint(tiny.variants()[name])
    path, manifest, device = built(tmp_path / "b", source, dialect, [1, 3], precision="fp16", cache="fp16")
    assert (device.compute, device.cache, manifest.cache) == ("float16", "fp16", "fp16")
    found = errors(compare_device(path, manifest, device, IDS, 2))
    assert 1e-5 < max(found.values()) < 3e-2, found


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights_are_read_as_they_are(shelf: Any, tmp_path: Path, precision: str) -> None:
    source = shelf.checkpoint(tiny.config())
    target = load_target(TARGETS["modern"])
    target = target.model_copy(update={"precisions": list(c.PRECISIONS)})
    build(open_student(source, [2]), target, tmp_path / "b", BuildOptions(precision=precision))
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.device is not None
    assert max(errors(compare_device(tmp_path / "b", manifest, manifest.device, IDS, 1)).values()) < 3e-2


@pytest.mark.parametrize("dialect", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_kind_of_exit_and_head(shelf: Any, tmp_path: Path, dialect: str, precision: str) -> None:
    source = shelf.checkpoint(exits=EXITS, heads=HEADS)
    found = errors(compare_device(*built(tmp_path / "b", source, dialect, precision=precision), IDS, 2))
    said = {"exit 0 choices", "exit 0 prediction", "exit 1 confidence", "exit 2 saturation", "head 0", "head 1"}
    assert said <= set(found)
    assert max(found.values()) <= (SAME if precision == "fp32" else 5e-2), found


@pytest.mark.parametrize("dialect", TARGETS)
def test_loops_with_lora(shelf: Any, tmp_path: Path, dialect: str) -> None:
    schedule = Loops(prelude=1, block=2, loops=3, rank=3, projections=["q", "v", "up"])
    source = shelf.checkpoint(loops=schedule, gain=0.35)
    found = errors(compare_device(*built(tmp_path / "b", source, dialect, [3], precision="fp32"), IDS, 2))
    assert max(found.values()) <= SAME, found


@pytest.mark.parametrize("dialect", TARGETS)
def test_graphs_for_the_rules_propagate_and_selected(shelf: Any, tmp_path: Path, dialect: str) -> None:
    """Positions of compact caches are scattered by ScatterND in both dialects, and so are copied."""
    source = shelf.checkpoint(tiny.variants()["mistral-window"])
    rules = ("catch_up", "propagate", "selected")
    path, manifest, device = built(tmp_path / "b", source, dialect, [2], precision="fp16", cache="fp16", kv=rules)
    assert max(errors(compare_device(path, manifest, device, IDS, 2)).values()) < 3e-2
    made = read_plan(path / device.plan)
    assert [graph.name for graph in made.graphs][-1] == "kv_1"
    copied = made.graph("segment_0").copied
    assert copied.pop(c.KEY_POSITIONS) == c.updated(c.KEY_POSITIONS)
    assert (made.graph("segment_0").in_place == {}) == (dialect == "classic") == bool(copied)


def test_dialects_hold_what_they_say(shelf: Any, tmp_path: Path) -> None:
    """Attention, rotation and cache updates are single operators in one, and all is of opset 20 in the other."""
    for dialect, opset in (("modern", 24), ("classic", 20)):
        path, _, device = built(tmp_path / dialect, shelf.checkpoint(), dialect, [2], precision="fp16", cache="fp16")
        assert (device.opset, device.dialect) == (opset, dialect)
        kinds: dict[str, int] = {}
        for info in device.graphs.all():
            model = onnx.load(path / info.path, load_external_data=False)
            assert [o.version for o in model.opset_import if not o.domain] == [opset]
            assert bool(model.functions) == (dialect == "modern" and info.path.endswith("head.onnx"))
            for node in model.graph.node:
                kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
        newer = {"Attention": 4, "RotaryEmbedding": 4, "TensorScatter": 8, "RMSNormalization": 10}
        for kind, count in newer.items():
            assert kinds.get(kind, 0) == (count if dialect == "modern" else 0), kind
        assert kinds["MatMul"] == 4 * (4 if dialect == "modern" else 6)
        assert kinds[c.DECISION_OP] == 1
        head = onnx.load(path / device.graphs.head.path, load_external_data=False)
        (decision,) = (n for n in head.graph.node if n.op_type == c.DECISION_OP)
        (flag,) = (n for n in head.graph.node if c.EXIT_FLAG in n.output)  # a plugin gives no bool
        assert (flag.op_type, flag.input[0]) == ("Cast", decision.output[-1])


def test_weights_are_shared(shelf: Any, tmp_path: Path) -> None:
    """float16 graphs add the rotation's tables alone, and int4 ones the scales."""
    for precision, most in (("fp16", 10_000), ("int4", 20_000)):
        options = {"precision": precision, "cache": "fp16", "context": 64}
        path, manifest, device = built(tmp_path / precision, shelf.checkpoint(), "modern", [2], **options)
        assert 0 < manifest.files["segments/device.weights"].bytes < most
        made = read_plan(path / device.plan)
        assert made.graph("segment_0").weights == [
            "segments/device.weights", *(["segments/segment_0.weights", "segments/shared.weights"][:1]),
        ]  # fmt: skip
        assert all(graph.sha256 == manifest.files[graph.path].sha256 for graph in made.graphs)


def test_a_plan_covers_every_graph(shelf: Any, tmp_path: Path) -> None:
    path, manifest, device = built(tmp_path / "b", shelf.checkpoint(), "modern", [2], precision="fp16", cache="fp16")
    made = read_plan(path / device.plan)
    assert [graph.path for graph in made.graphs] == [info.path for info in device.graphs.all()]
    assert (made.plugin, made.sm, made.compute, made.length) == ("preferred", [90], "float16", 320)
    assert [graph.name for graph in made.graphs if graph.plugin] == ["head"]
    segment = made.graph("segment_0")
    assert segment.in_place == {
        f"{kind}_cache_{i}": f"{kind}_cache_{i}_out" for i in (0, 1) for kind in ("key", "value")
    }
    for info, graph in zip(device.graphs.all(), made.graphs, strict=True):
        assert [set(profile.shapes) for profile in graph.profiles] == [{t.name for t in info.inputs}] * 2
    assert manifest.slots == 2


def test_two_builds_are_the_same_bytes(shelf: Any, tmp_path: Path) -> None:
    made = [built(tmp_path / name, shelf.checkpoint(), "classic", [2], precision="fp16")[1] for name in ("a", "b")]
    assert made[0] == made[1]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "int8 caches": ("h100", {"cache": "int8"}, "no int8 caches"),
    "float32 weights in float16": ("h100", {"precision": "fp32", "compute": "float16"}, "float32 are not multiplied"),
    "compute of a processor": ("cpu", {"compute": "float16"}, "runs no engines"),
    "an unknown type": ("h100", {"compute": "int4"}, "do not compute in 'int4'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(shelf: Any, tmp_path: Path, name: str) -> None:
    target, options, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        build(open_student(shelf.checkpoint()), load_target(target), tmp_path / "b", BuildOptions(**options))


def test_blocks_of_weights_need_a_newer_opset_than_the_classic_dialect_has(shelf: Any, tmp_path: Path) -> None:
    target = load_target(TARGETS["classic"]).model_copy(update={"precisions": ["int4"]})
    with pytest.raises(UsageError, match="opset 21"):
        build(open_student(shelf.checkpoint()), target, tmp_path / "b", BuildOptions(precision="int4"))


def test_other_models_are_refused(tmp_path: Path) -> None:
    import tiny_t5

    source = tiny.checkpoint(tmp_path / "t5", tiny_t5.t5())
    with pytest.raises(UsageError, match="an encoder-decoder has no graphs for engines"):
        build(open_student(source), load_target("h100"), tmp_path / "b", BuildOptions())


def test_bfloat16_graphs_are_written(shelf: Any, tmp_path: Path) -> None:
    """ONNX Runtime's processor back end cannot run them, so their types are what can be looked at."""
    path, _, device = built(tmp_path / "b", shelf.checkpoint(), "modern", [2], precision="fp16", compute="bfloat16")
    assert device.compute == "bfloat16"
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path / device.graphs.segments[0].path, load_external_data=False)
    )
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Attention", "RotaryEmbedding"):
            assert types[node.output[0]] == onnx.TensorProto.BFLOAT16
        if node.op_type == "RMSNormalization":
            assert types[node.output[0]] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("dialect", TARGETS)
@pytest.mark.parametrize("name", ["llama", "llama-every-head-its-keys"])
def test_a_row_is_the_same_in_passes_of_every_width(shelf: Any, tmp_path: Path, name: str, dialect: str) -> None:
    """As in the bundle's own graphs: exact mode rests on it."""
    source = shelf.checkpoint(tiny.variants()[name])
    path, manifest, device = built(tmp_path / "b", source, dialect, [2], precision="fp32")
    seen = []
    for widths in ([6], [1] * 6, [4, 2]):
        runner, first, rows = Runner(path, device.graphs, manifest, 1), 0, []
        for width in widths:
            places = np.arange(first, first + width)
            one = Pass(np.array([IDS])[:, places], np.array([first]), np.array([width]))
            said = dict(runner.run(one, read_factors(path, manifest), 0))
            rows.append(said["segment 1"])
            first += width
        seen.append(np.concatenate(rows))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize("name", [name for name in target_names() if load_target(name).backend != "onnxruntime"])
def test_every_target_can_be_built_for_in_every_precision_it_names(shelf: Any, name: str) -> None:
    student, target = open_student(shelf.checkpoint(), [2]), load_target(name)
    for precision in target.precisions:
        chosen = plan(student, target, BuildOptions(precision=precision))
        assert chosen["compute"] == ("float32" if precision == "fp32" else "float16")
        assert chosen["cache"] == "fp16"
        form = device_form(8, 64, dialect=target.dialect, opset=target.opset, compute=chosen["compute"])
        assert form.opset == NEWEST[target.dialect]


def test_progress_names_them_once(shelf: Any, tmp_path: Path) -> None:
    student, target = open_student(shelf.checkpoint(), [2]), load_target("h100")
    said: list[str] = []
    build(student, target, tmp_path / "b", BuildOptions(), progress=said.append)
    assert said.count("device graphs") == 1
    assert len(said) == stage_count(student, target) == stage_count(student) + 1


def test_the_command_line_chooses_the_type(shelf: Any, tmp_path: Path) -> None:
    source = shelf.checkpoint()
    options = ("build", source, "--target", "h100", "--exits", "2", "-o", tmp_path / "b")
    assert cli_json(*options, "--dry-run")["compute"] == "float16"
    assert cli_json(*options, "--compute", "bfloat16")["compute"] == "bfloat16"
    opened = read_bundle(tmp_path / "b")
    assert opened.manifest.device is not None
    assert opened.manifest.device.compute == "bfloat16"
    assert opened.profiles == (), "this processor will not run what was built"
    cli("build", source, "--target", "cpu", "--compute", "float16", "-o", tmp_path / "c", status=2)
