"""Products of 8-bit numbers: their arithmetic against float64, what scales them, and both kinds of graphs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tiny
from commands import cli, cli_json
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eecompile.bench.work_bundle import works_from_bundle
from eecompile.bench.work_student import stored_weights as stored_bytes
from eecompile.bench.work_student import works_from_student
from eecompile.bundle.factors import read_factors
from eecompile.bundle.manifest import Manifest
from eecompile.bundle.read import read_bundle
from eecompile.engines.plan import read_plan
from eecompile.errors import UsageError
from eecompile.pipeline import BuildOptions, build, stage_count
from eecompile.runtime import Bundle
from eecompile.runtime.trace import Tracer
from eecompile.segments.eight import EIGHTS, LEAST_SCALE, MOST_SCALE
from eecompile.segments.graph import GraphWriter
from eecompile.segments.quantize import channelwise
from eecompile.segments.scaled import scaled_product
from eecompile.segments.weights import WeightBook
from eecompile.shapes import HeadShape
from eecompile.student.activations import largest_inputs
from eecompile.student.exits import ExitSpec
from eecompile.student.loops import Loops
from eecompile.student.reference import ReferenceModel
from eecompile.student.store import WeightStore
from eecompile.student.student import open_student
from eecompile.target import load_target, target_names
from eecompile.verify.device import Pass, Runner, compare_device, is_score, largest_difference
from eecompile.verify.stored import is_rounded, stored_weights

RNG = np.random.default_rng(12)
IDS = RNG.integers(0, tiny.VOCAB, 24).tolist()
SAMPLES = (tuple(IDS), tuple(IDS[::-1]))
GRID = np.unique(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)[:127])
SIZES = [2.0**k for k in range(-30, 20)]
BOTH = ["w8a8", "fp8"]
EXITS = [
    ExitSpec(layer=1, adapter="mlp", gates=["max_prob"], head="thin"),
    ExitSpec(layer=2, adapter="layer", gates=["max_prob"]),
]
HEADS = [HeadShape(name="thin", kind="low_rank", rank=32)]


def nearest(values: Any, precision: str) -> Any:
    """The E4M3 numbers, or integers, next to `values`, float64, ties to the one whose last bit is zero."""
    if precision == "w8a8":
        return np.clip(np.round(values), -128, 127)
    sizes = np.minimum(np.abs(values), GRID[-1])
    above = np.searchsorted(GRID, sizes)
    low, high = GRID[np.maximum(above - 1, 0)], GRID[above]
    even = (above - 1) % 2 == 0
    take_low = (sizes - low < high - sizes) | ((sizes - low == high - sizes) & even)
    return np.sign(values) * np.where(take_low, low, high)


def built(out: Path, source: Path, at: Any = (), target: str = "h100", **options: Any) -> tuple[Path, Manifest]:
    options = {"precision": "fp8", "samples": SAMPLES, "slots": 2, **options}
    build(open_student(source, at), load_target(target), out, BuildOptions(**options))
    return out, read_bundle(out).manifest


class RoundedModel(ReferenceModel):
    """The float32 model with every product of its layers rounded as a build with these largest inputs rounds it, in
    float64. sides: the weights that stand side by side in one matrix, by each of their names."""

    def __init__(self, spec: Any, store: WeightStore, largest: dict[str, Any], precision: str) -> None:
        super().__init__(spec, store)
        self.largest, self.precision = largest, precision
        self.sides: dict[str, list[str]] = {}
        for i in range(spec.layers):
            for roles in ((spec.names.q, spec.names.k, spec.names.v), (spec.names.gate, spec.names.up)):
                names = [name for name in (f"{role}.weight".format(i=i) for role in roles) if name in largest]
                self.sides |= dict.fromkeys(names, names)

    def _rows(self, name: str, ids: Any) -> Any:
        return super()._rows(name, ids).astype(np.float16).astype(np.float32)

    def _project(self, x: Any, name: str) -> Any:
        if name not in self.largest:
            weight = self.store.read(name).astype(np.float16).astype(np.float64)
            return (x @ weight.T).astype(np.float32)
        eight, weight = EIGHTS[self.precision], self.store.read(name).astype(np.float64)
        sizes = [np.abs(self.store.read(n)).max(axis=0) for n in self.sides.get(name, [name])]
        factors = eight.factors(self.largest[name], np.max(sizes, axis=0)).astype(np.float64)
        step = float(eight.scale((self.largest[name] / factors).max()))
        steps = eight.scale(np.abs(weight * factors).max(axis=1)).astype(np.float64)[:, None]
        rounded = nearest(weight * factors / steps, self.precision) * steps
        return (nearest(x / factors / step, self.precision) * step @ rounded.T).astype(np.float32)


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_scales_of_floats_are_the_least_powers_of_two_that_let_numbers_fit(largest: float) -> None:
    scale = float(EIGHTS["fp8"].scale(np.float32(largest)))
    assert np.log2(scale) == round(np.log2(scale))
    assert float(np.float16(scale)) == scale
    assert largest <= 448 * scale or scale == MOST_SCALE
    assert largest > 224 * scale or scale == LEAST_SCALE


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_scales_of_integers_are_the_least_of_float16_that_let_numbers_fit(largest: float) -> None:
    scale = float(EIGHTS["w8a8"].scale(np.float32(largest)))
    assert float(np.float16(scale)) == scale
    assert largest <= 127 * scale or scale == MOST_SCALE
    below = float(np.nextafter(np.float16(scale), np.float16(0)))
    assert largest > 127 * below or scale == LEAST_SCALE


@pytest.mark.parametrize("power", [-3, 0, 5])
def test_a_scale_at_the_edge_is_not_one_too_large(power: int) -> None:
    scale = EIGHTS["fp8"].scale
    assert float(scale(np.float32(448 * 2.0**power))) == 2.0**power
    assert float(scale(np.nextafter(np.float32(448 * 2.0**power), np.float32(np.inf)))) == 2.0 ** (power + 1)


def test_smoothing_evens_inputs_out_and_weights_take_it_over() -> None:
    """Weights take over 0.7 of the unevenness, to within the nearest power of two."""
    inputs, weights = np.array([100, 1, 0.01, 0], np.float32), np.array([1, 1, 4, 0], np.float32)
    factors = EIGHTS["w8a8"].factors(inputs, weights)
    assert (np.frexp(factors)[0] == 0.5).all()
    off = np.log2((inputs / factors)[:3]) - 0.3 * np.log2((inputs * weights)[:3])
    assert (np.abs(off) <= 0.51).all()
    assert (EIGHTS["fp8"].factors(inputs, weights) == 1).all()


@pytest.mark.parametrize("precision", BOTH)
@given(
    rows=hnp.arrays(np.float32, (3, 8), elements=st.floats(-60000, 60000, width=32)),
    sizes=hnp.arrays(np.float32, (3, 1), elements=st.sampled_from(SIZES)),
)
def test_weights_are_the_nearest_of_the_type(tmp_path: Path, precision: str, rows: Any, sizes: Any) -> None:
    rows = np.clip(rows * sizes, -6e4, 6e4)
    tiny.write_safetensors(tmp_path / "model.safetensors", {"a": rows})
    inputs = np.exp2(np.arange(8)).astype(np.float32)
    values, scales, factors = channelwise(WeightStore.open(tmp_path), ["a"], EIGHTS[precision], inputs)
    exact = (rows * factors).astype(np.float32) / scales.data[:, None]
    assert np.abs(exact).max() <= EIGHTS[precision].most * (1 + 1e-6)
    np.testing.assert_array_equal(values.data.T.astype(np.float64), nearest(exact, precision))


def test_what_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    for fault in (np.nan, np.inf, 7e4):
        tiny.write_safetensors(tmp_path / "model.safetensors", {"a": np.full((2, 4), fault, np.float32)})
        with pytest.raises(UsageError, match="not finite or too large"):
            channelwise(WeightStore.open(tmp_path), ["a"], EIGHTS["fp8"], np.ones(4, np.float32))


@pytest.mark.parametrize("precision", BOTH)
def test_a_product_is_that_of_rounded_rows_and_weights(tmp_path: Path, precision: str) -> None:
    """Rows beyond the largest are cut off; rows are the same alone and together."""
    tensors = {name: RNG.standard_normal((rows, 48)).astype(np.float32) for name, rows in (("a", 5), ("b", 3))}
    tiny.write_safetensors(tmp_path / "model.safetensors", tensors)
    store, book, eight = WeightStore.open(tmp_path), WeightBook(tmp_path), EIGHTS[precision]
    inputs = np.exp(RNG.standard_normal(48)).astype(np.float32)
    g = GraphWriter("g", book)
    y = scaled_product(g, store, g.input("x", "float32", "N", 48), ["a", "b"], eight, inputs)
    g.output(y, "y", "float32", "N", 8)
    g.save(tmp_path / "g.onnx")
    book.close()
    whole = np.concatenate([tensors["a"], tensors["b"]])
    factors = eight.factors(inputs, np.abs(whole).max(axis=0)).astype(np.float64)
    step = float(eight.scale((inputs / factors).max()))
    x = (20 * RNG.standard_normal((7, 48))).astype(np.float32)
    assert np.abs(x / factors).max() > eight.most * step, "some are cut off"
    steps = eight.scale(np.abs(whole * factors).max(axis=1)).astype(np.float64)[:, None]
    rows = nearest(x / factors / np.float32(step), precision) * step
    expected = rows @ (nearest(whole * factors / steps, precision) * steps).T
    session = tiny.ort_session(tmp_path / "g.onnx")
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    np.testing.assert_array_equal(alone, y)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_largest_inputs_are_those_of_transformers(shelf: Any, name: str) -> None:
    torch = pytest.importorskip("torch")
    source = shelf.checkpoint(tiny.variants()[name])
    student, model = open_student(source), tiny.hugging_face(source)
    parts = [m for m in model.base_model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    sizes: dict[Any, Any] = {}

    def note(part: Any, inputs: Any) -> None:
        now = inputs[0].abs().flatten(0, -2).amax(dim=0).numpy()
        sizes[part] = np.maximum(sizes.get(part, now), now)

    for part in parts:
        part.register_forward_pre_hook(note)
    for ids in SAMPLES:
        with torch.inference_mode():
            model(torch.tensor([list(ids)]))
    largest = largest_inputs(student, SAMPLES)
    weights = {n for i in range(student.spec.layers) for n, s in student.spec.layer_shapes(i).items() if len(s) == 2}
    assert set(largest) == weights
    for size in largest.values():
        assert any(s.shape == size.shape and np.allclose(s, size, rtol=1e-3, atol=1e-5) for s in sizes.values())
    for size in sizes.values():
        assert any(s.shape == size.shape and np.allclose(s, size, rtol=1e-3, atol=1e-5) for s in largest.values())


def test_loops_are_scaled_by_their_largest_run(shelf: Any) -> None:
    loops = Loops(prelude=1, block=2, loops=2, rank=4, projections=["q", "down"])
    student = open_student(shelf.checkpoint(loops=loops))
    largest, once = (largest_inputs(s, SAMPLES) for s in (student, open_student(shelf.checkpoint())))
    assert largest.keys() == once.keys()
    first, again = (student.own_spec.names.q.format(i=i) + ".weight" for i in (0, 1))
    np.testing.assert_array_equal(largest[first], once[first])
    assert (largest[again] >= once[again] * (1 - 1e-6)).all()
    assert (largest[again] > once[again]).any()


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
def test_a_bundle_computes_the_rounded_products(shelf: Any, tmp_path: Path, name: str, precision: str) -> None:
    """Its own graphs, to within rows that lie at the edge of a step; a model in float32 is much farther off."""
    source = shelf.checkpoint(tiny.variants()[name], gain=0.3)
    path, _ = built(tmp_path / "b", source, precision=precision, cache="fp32")
    student = open_student(source)
    boundaries = Tracer(Bundle.open(path), boundaries=True).trace(IDS).boundaries
    assert boundaries is not None
    model = RoundedModel(student.spec, student.store, largest_inputs(student, SAMPLES), precision)
    rounded, exact = model.run(IDS, [])[1], ReferenceModel(student.spec, student.store).run(IDS, [])[1]
    off = [np.linalg.norm(boundaries[-1] - other) / np.linalg.norm(other) for other in (rounded, exact)]
    assert off[0] < 0.3 * off[1]
    assert 0.002 < off[1] < 0.15


CASES = [
    *((name, "fp8", "h100") for name in ("llama", "gpt2", "gemma2", "qwen3")),
    *((name, "w8a8", target) for name in ("llama", "gpt2", "qwen3") for target in ("a100", "jetson-orin-jp6")),
]


@pytest.mark.parametrize(("name", "precision", "target"), CASES)
def test_device_graphs_round_as_the_bundles_own_do(
    shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str, target: str
) -> None:
    """In float32, so that nothing but how they are written differs: rows at the edge of a step are rare then, and these
    weights have none."""
    monkeypatch.setattr("eecompile.pipeline.choose_device", lambda *_: {"cache": "fp32", "compute": "float32"})
    source = shelf.checkpoint(tiny.variants()[name], gain=0.25)
    assert _apart(*built(tmp_path / "b", source, [2], target, precision=precision)) < 5e-3


@pytest.mark.parametrize("precision", BOTH)
def test_in_float16_they_are_near(shelf: Any, tmp_path: Path, precision: str) -> None:
    """A step of few bits lies behind every rounding of float16, here in a block that repeats with LoRA."""
    loops = Loops(prelude=1, block=2, loops=2, rank=4, projections=["q", "down"])
    assert _apart(*built(tmp_path / "b", shelf.checkpoint(gain=0.3, loops=loops), precision=precision)) < 0.3


def _apart(path: Path, manifest: Manifest) -> float:
    """The largest error over what all boundaries hold."""
    assert manifest.device is not None
    found = compare_device(path, manifest, manifest.device, IDS, 2)
    return max(
        largest_difference(a, b) if is_score(where) else float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for where, (a, b) in found.items()
    )


def test_every_kind_of_graph(shelf: Any, tmp_path: Path) -> None:
    """Exits with an MLP or a layer, small heads and the head are float16; layers and the K/V-only graphs are not."""
    source = shelf.checkpoint(exits=EXITS, heads=HEADS)
    path, manifest = built(tmp_path / "b", source)
    plain, _ = built(tmp_path / "p", shelf.checkpoint(), [2], kv=("catch_up", "propagate"))
    assert manifest.device is not None
    kinds = {info.path: _kinds(path / info.path) for info in manifest.device.graphs.all()}
    quantised = {name: count for name, count in kinds.items() if count["QuantizeLinear"]}
    assert {Path(n).stem: (k["QuantizeLinear"], k["DequantizeLinear"]) for n, k in quantised.items()} == {
        "device_segment_0": (4, 8), "device_segment_1": (4, 8), "device_segment_2": (8, 16),
    }  # fmt: skip
    assert all(k["MatMul"] == k["QuantizeLinear"] for k in quantised.values())
    assert _kinds(plain / "segments/device_kv_1.onnx")["QuantizeLinear"] == 2
    own = _kinds(path / "segments/segment_0.onnx")
    assert not own["QuantizeLinear"] + own["DequantizeLinear"]
    made = read_plan(path / manifest.device.plan)
    assert (made.precision, made.compute, manifest.precision) == ("fp8", "float16", "fp8")
    assert all(np.isfinite(a).all() for a, _ in compare_device(path, manifest, manifest.device, IDS, 2).values())


def _kinds(path: Path) -> Any:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {kind: sum(n.op_type == kind for n in nodes) for kind in ("QuantizeLinear", "DequantizeLinear", "MatMul")}


@pytest.mark.parametrize("precision", BOTH)
def test_types_in_a_devices_graph(shelf: Any, tmp_path: Path, precision: str) -> None:
    """Rows are quantised from the type that they have, and both factors of a product come back as float16."""
    path, _ = built(tmp_path / "b", shelf.checkpoint(), precision=precision)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path / "segments/device_segment_0.onnx", load_external_data=False)
    )
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    wide, small, eight = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, EIGHTS[precision].item_type
    from_wide = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[0]] == types[node.input[1]]
            assert types[node.output[0]] == eight
            from_wide += types[node.input[0]] == wide
        if node.op_type == "DequantizeLinear":
            assert [types[n] for n in node.input[:2]] == [eight, small]
        if node.op_type == "MatMul":
            assert [types[n] for n in node.input] == [small, small]
    assert from_wide == 2 * 4, "behind the norms"


@pytest.mark.parametrize("precision", BOTH)
def test_a_row_is_the_same_in_passes_of_every_width(shelf: Any, tmp_path: Path, precision: str) -> None:
    path, manifest = built(tmp_path / "b", shelf.checkpoint(), [2], precision=precision, cache="fp32")
    seen = []
    for widths in ([6], [1] * 6, [4, 2]):
        runner, first, rows = Runner(path, manifest.graphs, manifest, 1), 0, []
        for width in widths:
            places = np.arange(first, first + width)
            one = Pass(np.array([IDS])[:, places], np.array([first]), np.array([width]))
            rows.append(dict(runner.run(one, read_factors(path, manifest), 0))["segment 1"])
            first += width
        seen.append(np.concatenate(rows))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize("precision", BOTH)
def test_the_shapes_of_a_student_say_what_its_files_say(shelf: Any, tmp_path: Path, precision: str) -> None:
    source = shelf.checkpoint(exits=EXITS, heads=HEADS)
    path, manifest = built(tmp_path / "b", source, precision=precision)
    works, found = works_from_student(open_student(source), precision, "fp16"), works_from_bundle(manifest, path)
    assert works.keys() == found.keys()
    for name, work in works.items():
        assert found[name].weights == pytest.approx(work.weights, rel=0.01), name
        assert found[name].products == work.products, name
    half = works_from_student(open_student(source), "fp16", "fp16")
    assert works["segment_2"].weights < 0.65 * half["segment_2"].weights
    assert works["head"] == half["head"]
    assert stored_bytes(open_student(source), precision, works) < stored_bytes(open_student(source), "fp16", half)


@pytest.mark.parametrize("precision", BOTH)
def test_verify_holds_stored_weights_against_the_checkpoint(shelf: Any, tmp_path: Path, precision: str) -> None:
    source = shelf.checkpoint()
    path, manifest = built(tmp_path / "b", source, [2], precision=precision)
    student = open_student(source)
    stored, _ = stored_weights(path, manifest, student.own_spec)
    for name in student.spec.layer_shapes(1):
        expected = student.store.read(name)
        assert is_rounded(stored.parts[name], expected, precision)[0], name
        if expected.ndim == 2:
            other = expected.copy()
            other[0, 0] += 0.3 * np.abs(expected[0]).max()
            assert not is_rounded(stored.parts[name], other, precision)[0]
            assert not is_rounded(stored.parts[name], 0.25 * expected, precision)[0]
            assert np.abs(stored.read(name) - expected).max() <= np.abs(expected).max() / 16


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no texts": ("h100", {"samples": ()}, r"fp8 is scaled by (.|\n)*--texts"),
    "Ampere": ("a100", {}, "target a100 has no fp8"),
    "Orin": ("jetson-orin", {}, "target jetson-orin has no fp8"),
    "a processor": ("cpu", {}, "target cpu has no fp8"),
    "products in float32": ("h100", {"compute": "float32"}, "fp8 give no float32"),
    "blocks in the classic dialect": ("jetson-orin-jp6", {"precision": "int4"}, "has no int4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(shelf: Any, tmp_path: Path, name: str) -> None:
    target, options, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        built(tmp_path / "b", shelf.checkpoint(), target=target, **options)
    assert not (tmp_path / "b").exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    settings = tiny.config()
    weights = tiny.weights(settings)
    weights["model.layers.0.input_layernorm.weight"][:] = 3e38
    source = tiny.checkpoint(tmp_path / "c", settings, weights)
    with np.errstate(all="ignore"), pytest.raises(UsageError, match="are not finite"):
        built(tmp_path / "b", source)


def test_targets_that_have_floats_are_of_ada_and_later() -> None:
    """TensorRT multiplies in FP8 from compute capability 8.9 on."""
    for target in (load_target(name) for name in target_names()):
        engines = target.backend != "onnxruntime"
        assert ("fp8" in target.precisions) == (engines and min(target.sm) >= 89)
        assert ("w8a8" in target.precisions) == engines


def test_the_command_line(tmp_path: Path) -> None:
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "c", tiny.config(vocab_size=288)))
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "the {n} hats of the others"}}\n' for n in range(20)))
    options: Sequence[Any] = ("build", source, "--target", "l4", "--precision", "fp8", "-o", tmp_path / "b")
    dry = cli_json(*options, "--dry-run")
    assert (dry["precision"], dry["compute"]) == ("fp8", "float16")
    assert "--texts" in cli(*options, status=2).stderr
    cli(*options, "--texts", tmp_path / "none.jsonl", status=2)
    cli_json(*options, "--texts", tmp_path / "texts.jsonl", "--exits", "2")
    manifest = read_bundle(tmp_path / "b").manifest
    assert "of 8 texts" in str(manifest.provenance["scaled by"])
    assert cli_json("verify", tmp_path / "b", "--tokens", "4")["passed"]
    full, exact = (cli_json("run", tmp_path / "b", "the hats", "--max-new-tokens", "6", "--mode", mode)
                   for mode in ("full", "exact"))  # fmt: skip
    assert full["token_ids"] == exact["token_ids"]
    wrong = ("build", source, "--target", "l4", "--texts", tmp_path / "texts.jsonl", "-o", tmp_path / "c2")
    assert "--texts is for w8a8, fp8" in cli(*wrong, status=2).stderr


def test_progress_names_the_pass_over_texts(shelf: Any, tmp_path: Path) -> None:
    student, target, said = open_student(shelf.checkpoint(), [2]), load_target("h100"), list[str]()
    options = BuildOptions(precision="fp8", samples=SAMPLES)
    build(student, target, tmp_path / "b", options, progress=said.append)
    assert said.count("activations") == 1
    assert len(said) == stage_count(student, target, "fp8") == stage_count(student, target) + 1
