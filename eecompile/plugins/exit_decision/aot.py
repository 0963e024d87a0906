"""The exit decision as a plugin that engines carry: TensorRT's Python plugins with ahead-of-time kernels, 10.9 on.

An engine with it holds the kernel as PTX and needs no plugin library to run. Such a plugin has no workspace and no
scalars but 32-bit integers, so it is another launch of the same arithmetic (aot.cu): a block a row. Thresholds are an
input as everywhere. Its namespace cannot be empty, and nodes have to ask for it: `ask_for_aot`.

Coded to tensorrt.plugin of 10.9 to 11.1; unverified on hardware.
"""

import importlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GenericAlias
from typing import Any

import onnx

from eecompile import contract as c
from eecompile.errors import EECompileError, MissingBackend

NAMESPACE = c.DECISION_DOMAIN
PLUGIN_ID = f"{NAMESPACE}::{c.DECISION_OP}"
SOURCE = Path(__file__).with_name("aot.cu")
FIRST_AOT = "10.9"  # of TensorRT
PTX_TARGET = "compute_80"  # every GPU that targets name runs it
TILE = 4096  # logits that kTile of tile.cuh has
TILES_AT_ONCE = 4  # kTilesAtOnce of aot.cu
THREADS = 256  # kThreads of tile.cuh
REDUCTION_BYTES = 24  # of struct Reduction
FORMATS = "FP32|FP16|BF16, FP32, INT64, FP32, FP32, FP32, INT32"  # no plugin gives a bool
_KERNELS = {"FLOAT": "exit_decision_fp32", "HALF": "exit_decision_fp16", "BF16": "exit_decision_bf16"}
_ATTRIBUTES = {"plugin_namespace": NAMESPACE, "aot": 1}
Compile = Callable[[], bytes]


def compile_ptx(nvcc: str = "nvcc") -> bytes:
    """The kernels of aot.cu as PTX, by a CUDA compiler.

    Raises MissingBackend where there is none, EECompileError with what it says where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        made = Path(folder) / "aot.ptx"
        command = [nvcc, "-O3", "-std=c++17", "-ptx", f"-arch={PTX_TARGET}", str(SOURCE), "-o", str(made)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as e:
            raise MissingBackend(
                f"{nvcc} cannot be run ({e.strerror})", where=PLUGIN_ID, mend="install the CUDA toolkit"
            ) from e
        except subprocess.CalledProcessError as e:
            raise EECompileError(f"{nvcc} fails: {e.stderr.strip()[-600:]}", where=str(SOURCE)) from e
        return made.read_bytes()


def register_aot(trt: Any, compile: Compile = compile_ptx) -> None:
    """Register the plugin with `trt`, the tensorrt module, for engines that this process builds. Idempotent.

    compile: gives the PTX, asked once, when an engine first wants it. Raises MissingBackend below TensorRT 10.9.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        what = f"TensorRT {trt.__version__} has no plugins with ahead-of-time kernels ({FIRST_AOT} has)"
        raise MissingBackend(what, where=PLUGIN_ID, mend="the plugin library: `make plugin`")
    if trt.get_plugin_registry().get_creator(c.DECISION_OP, c.DECISION_VERSION, NAMESPACE) is not None:
        return
    plugin = importlib.import_module(f"{trt.__name__}.plugin")
    for decorator, function in _functions(trt, plugin, compile):
        getattr(plugin, decorator)(PLUGIN_ID)(function)


def ask_for_aot(model: onnx.ModelProto) -> int:
    """Make every exit decision of `model` ask for this plugin in place of the library's; how many there are.

    The model's function keeps its body: ONNX Runtime runs the model as before.
    """
    nodes = [n for n in model.graph.node if n.op_type == c.DECISION_OP and n.domain == c.DECISION_DOMAIN]
    for node in nodes:
        kept = [a for a in node.attribute if a.name not in _ATTRIBUTES]
        asked = [onnx.helper.make_attribute(name, value) for name, value in _ATTRIBUTES.items()]
        del node.attribute[:]
        node.attribute.extend([*kept, *asked])
    for function in model.functions:
        if function.name == c.DECISION_OP and function.domain == c.DECISION_DOMAIN:
            function.attribute.extend(name for name in _ATTRIBUTES if name not in function.attribute)
    return len(nodes)


def _functions(trt: Any, plugin: Any, compile: Compile) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What tensorrt.plugin wants, by the decorator that takes it. It reads annotations, which name its own types."""
    desc, ptx = plugin.TensorDesc, list[bytes]()

    def describe(logits: Any, thresholds: Any) -> Any:
        if len(logits.shape_expr) != 2 or len(thresholds.shape_expr) != 2:
            raise ValueError(f"{PLUGIN_ID}: logits have to be [N, V] and thresholds [N, 3]")
        types = [trt.DataType.INT64, *[trt.DataType.FLOAT] * 3, trt.DataType.INT32]
        return tuple(plugin.from_shape_expr((logits.shape_expr[0],), dtype) for dtype in types)

    def formats(logits: Any, thresholds: Any, outputs: Any) -> Any:
        return [plugin.AutoTuneCombination(FORMATS, "LINEAR")]

    def implement(logits: Any, thresholds: Any, outputs: Any, tactic: int) -> Any:
        if not ptx:
            ptx.append(compile())
        rows, vocab = logits.shape_expr[0], logits.shape_expr[1]
        launch = plugin.KernelLaunchParams()
        launch.grid_x, launch.block_x, launch.block_y = rows, THREADS, TILES_AT_ONCE
        launch.shared_mem = plugin.cdiv(vocab, TILE) * REDUCTION_BYTES
        scalars = plugin.SymIntExprs.from_tuple([plugin.SymInt32(vocab)])
        return _KERNELS[logits.dtype.name], ptx[0], launch, scalars

    inputs = {"logits": desc, "thresholds": desc}
    given = {**inputs, "outputs": GenericAlias(tuple, (desc,))}
    answer = GenericAlias(tuple, (str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs))
    describe.__annotations__ = {**inputs, "return": GenericAlias(tuple, (desc,) * 5)}
    formats.__annotations__ = {**given, "return": GenericAlias(list, (plugin.AutoTuneCombination,))}
    implement.__annotations__ = {**given, "tactic": int, "return": answer}
    yield "register", describe
    yield "autotune", formats
    yield "aot_impl", implement
