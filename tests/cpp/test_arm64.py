"""The C++ runtime cross-compiled for arm64 and run under qemu: the tokens that the Python runtime has here."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from compiled import ROOT, SOURCES
from onnx import TensorProto, helper, numpy_helper

from eecompile import contract as c
from eecompile.engines.ort import processors, session_options, use_threads
from eecompile.runtime import Bundle, Sampling

pytestmark = pytest.mark.slow
CORTEX_A72 = (
    "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
    "CPU part\t: 0xd08\nCPU revision\t: 3\n"
)
COMPILER = "aarch64-linux-gnu-g++"
SYSROOT = Path("/usr/aarch64-linux-gnu")
DEPS = ROOT / "build" / "deps-arm64"
LIBRARY = DEPS / "lib" / "libonnxruntime.so.1"
PROMPT = [3, 1, 4, 1, 5]
DRAFTS = {1: {"max_prob": 0.04}, 3: {"max_prob": 0.04}}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that qemu shows: Debian's libraries for arm64, and a processor without caches. What this machine's own
    processor says of its caches makes ONNX Runtime for arm64 crash when it is loaded."""
    root = tmp_path_factory.mktemp("arm64")
    (root / "lib").symlink_to(SYSROOT / "lib")
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CORTEX_A72)
    for number in range(os.cpu_count() or 1):
        folder = root / f"sys/devices/system/cpu/cpu{number}/cache/index2"
        folder.mkdir(parents=True)
        for name in ("level", "size", "shared_cpu_list"):
            (folder / name).touch()
    return root


@pytest.fixture(scope="module")
def emulator() -> str:
    """The path of qemu."""
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None or shutil.which(COMPILER) is None:
        pytest.skip("no cross-compiler or no qemu: apt-get install g++-aarch64-linux-gnu qemu-user")
    if not LIBRARY.exists():
        pytest.skip(f"no {LIBRARY}: run `make arm64`")
    return found


@pytest.fixture(scope="module")
def emulated(prefix: Path, emulator: str) -> list[str]:
    """The words of eecompile-run for arm64."""
    folder = ROOT / "build" / f"cpp-arm64-{hashlib.sha256(str(SOURCES).encode()).hexdigest()[:8]}"
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    configure = ["-S", SOURCES, "-B", folder, f"-DCMAKE_PREFIX_PATH={DEPS}", *options]
    for command in (configure, ["--build", folder, "-j2", "--target", "eecompile-run"]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return [emulator, "-L", str(prefix), str(folder / "eecompile-run"), "--onnxruntime", str(LIBRARY), "--threads", "1"]


Run = Callable[[Path, str, Mapping[str, np.ndarray[Any, Any]]], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def one_graph(prefix: Path, emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """By a processor's name: a run of one graph by ONNX Runtime for arm64 alone, without the C++ runtime."""
    folder = tmp_path_factory.mktemp("one")
    source, headers = Path(__file__).with_name("one_graph.cpp"), DEPS / "include" / "onnxruntime"
    subprocess.run([COMPILER, "-std=c++17", f"-I{headers}", source, "-ldl", "-o", folder / "one"], check=True)

    def on(processor: str) -> Run:
        def run(model: Path, output: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
            words = [emulator, "-cpu", processor, "-L", prefix, folder / "one", LIBRARY, model, output]
            for name, array in inputs.items():
                array.tofile(folder / name)
                words.append(f"{name}:{array.dtype.name}:{','.join(map(str, array.shape))}:{folder / name}")
            done = subprocess.run([str(word) for word in words], capture_output=True, timeout=600)
            assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
            return np.frombuffer(done.stdout, np.float32)

        return run

    return on


def here(model: Path, output: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The same by this machine's ONNX Runtime."""
    use_threads(processors())
    session = ort.InferenceSession(str(model), session_options(), providers=["CPUExecutionProvider"])
    (found,) = session.run([output], dict(inputs))
    return np.asarray(found).ravel()


def apart(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """The size of the difference, as a part of `wanted`'s."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def tokens(emulated: list[str], opened: Bundle, mode: str, how: Sampling) -> list[int]:
    """What arm64 generates."""
    words = [str(opened.files.path), "--prompt-ids", ",".join(map(str, PROMPT)), "--mode", mode, "--json"]
    for layer in () if mode == "full" else DRAFTS:
        words += ["--threshold", f"{layer}:max_prob={DRAFTS[layer]['max_prob']}"]
    words += ["--max-new-tokens", "16", "--temperature", str(how.temperature), "--seed", str(how.seed)]
    done = subprocess.run([*emulated, *words], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[int] = json.loads(done.stdout)["token_ids"]
    return found


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, seed=4)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_tokens_are_those_of_this_machine(shelf: Any, emulated: list[str], precision: str, how: Sampling) -> None:
    """In int4 ONNX Runtime's kernels for arm64 round otherwise: near-ties fall otherwise, but alike in both modes."""
    opened: Bundle = shelf.bundle(at=[1, 3], precision=precision, gain=0.35)
    found = tokens(emulated, opened, "full", how)
    assert tokens(emulated, opened, "exact", how) == found
    count = 4 if precision == "int4" else 16
    own = [token.id for token in opened.session().generate(PROMPT, max_new_tokens=16, sampling=how)]
    assert found[:count] == own[:count]


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("int8", 0.01), ("int4", 0.05)])
def test_the_first_pass_has_logits_as_near_as_the_kernels_round(
    shelf: Any, one_graph: Callable[[str], Run], precision: str, most: float
) -> None:
    """The uncut graph, of which no code of the C++ runtime takes part."""
    opened: Bundle = shelf.bundle(at=[1, 3], precision=precision, gain=0.35)
    graph = json.loads((opened.files.path / c.MANIFEST).read_text())["graphs"]["reference"]
    sizes = {"B": 1, "R": len(PROMPT), "N": len(PROMPT), "T": c.CACHE_BUCKET}
    inputs = {
        tensor["name"]: np.zeros([sizes.get(size, size) for size in tensor["shape"]], tensor["dtype"])
        for tensor in graph["inputs"]
    }
    inputs[c.TOKEN_IDS][0] = PROMPT
    inputs[c.POSITIONS][0] = np.arange(len(PROMPT))
    model = opened.files.path / graph["path"]
    assert apart(one_graph("max")(model, c.LOGITS, inputs), here(model, c.LOGITS, inputs)) < most


def test_products_with_int4_differ_by_what_each_kernel_rounds(tmp_path: Path, one_graph: Callable[[str], Run]) -> None:
    """One product alone: x86 rounds the row to 8 bits block by block, arm64 with dot products of 8 bits in another way,
    and without them not at all. Each is as near to the exact product as 8 bits are."""
    inner, outer, random = 576, 64, np.random.default_rng(0)
    weight = random.integers(-8, 8, (inner, outer))
    scale = (random.random((inner // c.BLOCK, outer)) * 0.02 + 0.005).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=c.BLOCK),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    kept = [
        helper.make_tensor("w", TensorProto.INT4, weight.shape, weight.ravel().tolist()),
        numpy_helper.from_array(scale, "s"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, size]) for n, size in (("x", inner), ("y", outer))]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], kept)
    model = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), model)
    row = random.standard_normal((1, inner)).astype(np.float32)
    exact = row.astype(np.float64) @ (weight * np.repeat(scale, c.BLOCK, axis=0).astype(np.float64))
    ways = [here(model, "y", {"x": row}), *(one_graph(name)(model, "y", {"x": row}) for name in ("max", "cortex-a72"))]
    x86, arm64, plain = (apart(way, exact.ravel()) for way in ways)
    assert 1e-3 < x86 < 0.015
    assert 1e-3 < arm64 < 0.015
    assert plain < 1e-5
    assert apart(ways[1], ways[0]) > 1e-3
