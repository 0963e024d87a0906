"""A double of the builder half of the `tensorrt` module, which does what TensorRT's documentation says happens.

It records what was asked of it and refuses what the real one refuses: networks that are not strongly typed, inputs
whose shapes vary without a profile, shapes that are not in order, a parser that was collected before the build, objects
of one builder given to another, numbers in place of enumerators (which differ from version to version here too), names
that its version does not have. "Engines" are JSON of what they were built from.
"""

import gc
import json
import types
import weakref
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

DECISION = "ExitDecision"
_TYPES = {"Attention": "ATTENTION_INPUT", "TensorScatter": "KV_CACHE_UPDATE", "RotaryEmbedding": "ROTARY_EMBEDDING"}
_FIRST_WITH = {
    "Attention": (10, 14),
    "TensorScatter": (10, 15),
    "RotaryEmbedding": (10, 15),
    "RMSNormalization": (10, 15),
}
_OPSETS = ((10, 3), 20), ((10, 13), 22), ((10, 15), 24)


def make(
    version: str = "10.16.2",
    *,
    gpu: bool = True,
    rtx: bool = False,
    libraries: tuple[str, ...] = (),
    prefers_function: bool = False,
    python: Any = None,
) -> Any:
    """A module. libraries: paths of plugin libraries with the exit decision, which a parser that prefers a
    node's function does not take, as 10.6 and older. python: a double of what has plugins with ahead-of-time kernels
    (plugin_double.py)."""
    number = tuple(int(part) for part in version.split(".")[:2])
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__, trt.calls, trt.registered, trt.float32 = version, [], [], object()

    def enum(name: str, *members: str) -> Any:
        """An enumeration whose numbers are this version's own."""
        return Enum(name, {member: (i * 7 + sum(number)) % 61 for i, member in enumerate(members)})

    class NetworkDefinitionCreationFlag(int, Enum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1 + number[1] % 3

    trt.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    trt.BuilderFlag = enum("BuilderFlag", "TF32", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE")
    trt.LayerType = enum(
        "LayerType", *sorted({*_TYPES.values(), "ELEMENTWISE", "PLUGIN_V3", "TOPK", "MATRIX_MULTIPLY"})
    )
    if rtx:
        trt.ComputeCapability = enum("ComputeCapability", "NONE", "CURRENT", "SM80", "SM86", "SM89", "SM120")

    class ILogger:
        class Severity(Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            self.ready = True

    class IProgressMonitor:
        def __init__(self) -> None:
            self.ready = True

    class Flagged:
        def set_flag(self, flag: Any) -> None:
            assert isinstance(flag, trt.BuilderFlag), f"{flag!r} is no builder flag"
            self.flags.append(flag.name)

        def clear_flag(self, flag: Any) -> None:
            assert isinstance(flag, trt.BuilderFlag), f"{flag!r} is no builder flag"
            self.flags.remove(flag.name)

    class Registry:
        def load_library(self, path: str) -> Any:
            assert path not in trt.registered, "the registry refuses what opening has registered"
            return None

        def get_creator(self, name: str, version: str, plugin_namespace: str) -> Any:
            if python is not None and plugin_namespace:
                return python.get_plugin_registry().get_creator(name, version, plugin_namespace)
            assert (name, version, plugin_namespace) == (DECISION, "1", "")
            return object() if trt.registered else None

    def dlopen(path: str) -> None:
        trt.registered += [path] if path in libraries else []

    registry, trt.dlopen = Registry(), dlopen
    trt.get_plugin_registry = lambda: registry
    if python is not None:
        trt.DataType, trt.QuickPluginCreationRequest = python.DataType, python.QuickPluginCreationRequest

    class Layer:
        def __init__(self, kind: str) -> None:
            self.type = trt.LayerType[kind if kind in trt.LayerType.__members__ else "ELEMENTWISE"]

    class Attention:
        decomposable = False

        def get_input(self, index: int) -> Any:
            return types.SimpleNamespace(dtype=trt.float32)

    class IAttentionInputLayer(Layer):
        @property
        def attention(self) -> Any:
            return self.__dict__.setdefault("_attention", Attention())

    if number >= (10, 14) or rtx:
        trt.IAttentionInputLayer = IAttentionInputLayer

    class Tensor:
        def __init__(self, value: Any) -> None:
            self.name = value.name
            self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)

    class Network:
        def __init__(self, builder: Any) -> None:
            self.builder, self.layers, self.inputs, self.parser = builder, [], [], lambda: None
            self.carried: Any = None

        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class ParserError:
        def __init__(self, node: Any, number: int, text: str) -> None:
            self._node, self._number, self._text = node, number, text

        def node(self) -> int:
            return self._number

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

        def desc(self) -> str:
            return self._text

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self.network, self.errors = network, []
            network.parser = weakref.ref(self)

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, index: int) -> Any:
            return self.errors[index]

        def parse_from_file(self, path: str) -> bool:
            trt.calls.append(("parse", Path(path).name))
            return self._parse(onnx.load(path))  # with its weights, from beside it

        def parse(self, data: bytes, path: str | None = None) -> bool:
            model = onnx.load_model_from_string(data)
            if path is not None:
                onnx.load_external_data_for_model(model, str(Path(path).parent))
            return self._parse(model)

        def _parse(self, model: Any) -> bool:
            newest = next((o for first, o in reversed(_OPSETS) if number >= first), 0)
            known = {initializer.name for initializer in model.graph.initializer}
            self.network.inputs = [Tensor(v) for v in model.graph.input if v.name not in known]
            self.network.weights = sum(len(i.raw_data) for i in model.graph.initializer)
            functions = {function.name for function in model.functions}
            for i, node in enumerate(model.graph.node):
                self._node(
                    i, node, functions, max((o.version for o in model.opset_import if not o.domain), default=0), newest
                )
            return not self.errors

        def _node(self, i: int, node: Any, functions: set[str], opset: int, newest: int) -> None:
            asked = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.domain == "eecompile" and asked.get("plugin_namespace") == b"eecompile" and not prefers_function:
                definition = registry.get_creator(node.op_type, "1", "eecompile")
                parts = definition and (definition.register, definition.autotune, definition.aot_impl)
                if not parts or None in parts or asked.get("aot") != 1:
                    self.errors.append(ParserError(node, i, "Plugin has no ahead-of-time kernels"))
                self.network.layers.append(Layer("PLUGIN_V3"))
                self.network.carried = ("eecompile::" + node.op_type, [python.DataType.FLOAT] * 2, [[1, 64], [1, 3]])
            elif node.domain == "eecompile":
                by_function = node.op_type in functions and (prefers_function or not trt.registered)
                if not by_function and not trt.registered:
                    self.errors.append(ParserError(node, i, "Plugin not found"))
                self.network.layers += [Layer("TOPK"), Layer("ELEMENTWISE")] if by_function else [Layer("PLUGIN_V3")]
            elif not rtx and (opset > newest or number < _FIRST_WITH.get(node.op_type, (0, 0))):
                self.errors.append(ParserError(node, i, "No importer registered for op"))
            else:
                self.network.layers.append(Layer(_TYPES.get(node.op_type, node.op_type.upper())))

    class Profile:
        def __init__(self, builder: Any) -> None:
            self.builder, self.shapes = builder, {}

        def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None:
            assert len(least) == len(best) == len(most), name
            assert all(0 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True)), name
            self.shapes[name] = (least, best, most)

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            head, _, known = data.partition(b":")
            self.matches, self.known = not data or head == version.encode(), known.split(b",") if known else []

        def serialize(self) -> bytes:
            return version.encode() + b":" + b",".join(self.known)

    class Config(Flagged):
        def __init__(self, builder: Any) -> None:
            self.builder, self.flags, self.profiles, self.sms, self.cache = builder, ["TF32"], [], {}, None
            self.max_aux_streams, self.num_compute_capabilities, self.progress_monitor = -1, 0, None

        def add_optimization_profile(self, profile: Any) -> int:
            assert profile.builder is self.builder
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data: bytes) -> Any:
            return TimingCache(bytes(data))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache.matches or ignore_mismatch:
                self.cache = cache
            return bool(cache.matches or ignore_mismatch)

        def set_compute_capability(self, capability: Any, index: int) -> None:
            assert rtx
            assert isinstance(capability, trt.ComputeCapability)
            assert 0 <= index < self.num_compute_capabilities
            self.sms[index] = capability.name

    class Builder:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            assert logger.ready
            self.logger = logger
            if not (gpu or rtx):
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 100")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            assert flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED), "not strongly typed"
            return Network(self)

        def create_builder_config(self) -> Any:
            return Config(self)

        def create_optimization_profile(self) -> Any:
            return Profile(self)

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            assert network.builder is config.builder is self
            gc.collect()
            assert network.parser() is not None, "the parser, which keeps the weights, is gone"
            config.progress_monitor.phase_start("Building", None, 1)
            assert config.progress_monitor.step_complete("Building", 0) is True
            config.progress_monitor.phase_finish("Building")
            varying = {t.name: t.shape for t in network.inputs if -1 in t.shape}
            if fault := _profile_fault(varying, config.profiles):
                self.logger.log(ILogger.Severity.ERROR, fault)
                return None
            kernel = None if network.carried is None else python.kernel_for(*network.carried)
            if config.cache is not None:
                config.cache.known.append(str(len(network.layers)).encode())
            engine = {
                "version": version, "flags": config.flags, "layers": [layer.type.name for layer in network.layers],
                "decomposable": [it.attention.decomposable for it in network.layers if hasattr(it, "attention")],
                "profiles": [profile.shapes for profile in config.profiles], "aux": config.max_aux_streams,
                "sms": [config.sms[i] for i in range(config.num_compute_capabilities)],
                "weights": 0 if "STRIP_PLAN" in config.flags else network.weights, "plugins": trt.registered,
                "ptx": kernel and kernel.ptx.decode(),
            }  # fmt: skip
            return json.dumps(engine).encode()

    trt.ILogger, trt.IProgressMonitor, trt.OnnxParser, trt.Builder = ILogger, IProgressMonitor, OnnxParser, Builder
    return trt


def _profile_fault(varying: dict[str, tuple[int, ...]], profiles: list[Any]) -> str | None:
    """Why the builder refuses, in the manner of the real one."""
    if varying and not profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    for i, profile in enumerate(profiles):
        for name, shape in varying.items():
            if name not in profile.shapes:
                return f"{name}: dynamic input is missing dimensions in profile {i}."
            for dims in profile.shapes[name]:
                if len(dims) != len(shape) or any(d not in (-1, s) for d, s in zip(shape, dims, strict=True)):
                    return f"{name}: profile {i} gives {dims} for {shape}"
    return None
