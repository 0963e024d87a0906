"""A double of `tensorrt` and `tensorrt.plugin` as far as a plugin with ahead-of-time kernels meets them.

It holds functions to the rules of the vendor's package (10.9 to 11.1): names and order of parameters, annotations by
its own types, a namespace that is not reserved, symbolic arithmetic only; and builds: `Tensorrt.kernel_for`.
"""

import enum
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

RESERVED = {"", "trt", "tensorrt", "std"}


class DataType(enum.Enum):
    FLOAT, HALF, INT32, BOOL, BF16, INT64 = range(6)


NAMES = {"FP32": DataType.FLOAT, "FP16": DataType.HALF}


class SymInt32:
    """A symbolic integer: shapes are not known when a kernel is described."""

    def __init__(self, value: "int | SymInt32") -> None:
        self.at: Callable[[dict[str, int]], int] = value.at if isinstance(value, SymInt32) else lambda sizes: value

    def __mul__(self, other: "int | SymInt32") -> "SymInt32":
        return combined(self, other, lambda a, b: a * b)


class ShapeExpr(SymInt32):
    """One dimension."""

    def __init__(self, name: str) -> None:
        self.at = lambda sizes: sizes[name]


def combined(a: SymInt32, b: "int | SymInt32", operation: Callable[[int, int], int]) -> SymInt32:
    made, left, right = SymInt32(0), SymInt32(a), SymInt32(b)
    made.at = lambda sizes: operation(left.at(sizes), right.at(sizes))
    return made


def cdiv(first: SymInt32, second: int) -> SymInt32:
    assert isinstance(first, SymInt32)
    return combined(first, second, lambda a, b: -(-a // b))


@dataclass(frozen=True)
class TensorDesc:
    shape_expr: tuple[SymInt32, ...]
    dtype: DataType


def from_shape_expr(shape: tuple[SymInt32, ...], dtype: DataType) -> TensorDesc:
    assert isinstance(shape, tuple)
    return TensorDesc(shape, dtype)


class SymIntExprs:
    def __init__(self, values: tuple[SymInt32, ...]) -> None:
        self.values = values

    @classmethod
    def from_tuple(cls, values: Any) -> "SymIntExprs":
        assert all(isinstance(v, SymInt32) for v in values)
        return cls(tuple(values))


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        self.__dict__.update({n: SymInt32(int(n != "shared_mem")) for n in self.NAMES})

    def __setattr__(self, name: str, value: int | SymInt32) -> None:
        assert name in self.NAMES
        self.__dict__[name] = SymInt32(value)


class AutoTuneCombination:
    def __init__(self, types: str, layouts: str) -> None:
        assert layouts == "LINEAR"
        choices = [one.strip().split("|") for one in types.split(",")]
        count = max(map(len, choices))
        assert {len(one) for one in choices} <= {1, count}
        self.rows = [[named(one[i % len(one)]) for one in choices] for i in range(count)]


def named(name: str) -> DataType:
    return NAMES.get(name) or DataType[name]


@dataclass(frozen=True)
class Kernel:
    """What the engine would keep and, for given sizes, launch."""

    name: str
    ptx: bytes
    launch: dict[str, int]
    scalars: list[int]
    outputs: list[DataType]


@dataclass
class Definition:
    register: Any = None
    autotune: Any = None
    aot_impl: Any = None


@dataclass
class Registry:
    known: dict[tuple[str, str, str], Definition] = field(default_factory=dict)

    def get_creator(self, name: str, version: str, plugin_namespace: str = "") -> Definition | None:
        return self.known.get((name, version, plugin_namespace))


class Tensorrt(ModuleType):
    """The module. Put into sys.modules, with `plugin`, for as long as a test needs it."""

    def __init__(self, version: str = "10.9.0", aot: bool = True) -> None:
        super().__init__("tensorrt")
        self.__version__, self.registry = version, Registry()
        self.DataType = DataType
        self.plugin = self._plugin()
        if aot:
            self.QuickPluginCreationRequest = SimpleNamespace(STRICT_AOT=3)

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def _plugin(self) -> ModuleType:
        made = ModuleType("tensorrt.plugin")
        for one in (SymInt32, SymIntExprs, TensorDesc, KernelLaunchParams, AutoTuneCombination, from_shape_expr, cdiv):
            setattr(made, one.__name__, one)
        for name in ("register", "autotune", "aot_impl"):
            setattr(made, name, lambda plugin_id, name=name: lambda f: self._define(plugin_id, name, f))
        return made

    def _define(self, plugin_id: str, kind: str, function: Any) -> Any:
        space, name = plugin_id.split("::")
        assert space not in RESERVED
        assert "." not in plugin_id
        if kind == "register":
            assert (name, "1", space) not in self.registry.known, "registered twice"
            self.registry.known[name, "1", space] = Definition()
        definition = self.registry.known[name, "1", space]
        parameters = inspect.signature(function).parameters
        tensors = [n for n, p in parameters.items() if p.annotation is TensorDesc]
        returned = inspect.signature(function).return_annotation
        if kind == "register":
            assert list(parameters) == tensors
            assert typing.get_origin(returned) is tuple
            assert set(typing.get_args(returned)) == {TensorDesc}
        else:
            wanted = list(inspect.signature(definition.register).parameters)
            assert list(parameters) == [*wanted, "outputs", *(["tactic"] if kind == "aot_impl" else [])]
            assert typing.get_origin(parameters["outputs"].annotation) is tuple
        if kind == "aot_impl":
            assert typing.get_args(returned) == (str, bytes, KernelLaunchParams, SymIntExprs)
        setattr(definition, kind, function)
        return function

    def kernel_for(self, plugin_id: str, types: list[DataType], sizes: list[list[int]]) -> Kernel:
        """Build a plugin for inputs of these types and shapes, as the builder does for each format it supports."""
        space, name = plugin_id.split("::")
        definition = self.registry.known[name, "1", space]
        values = {f"d{i}{k}": size for i, shape in enumerate(sizes) for k, size in enumerate(shape)}
        inputs = [
            TensorDesc(tuple(ShapeExpr(f"d{i}{k}") for k in range(len(shape))), t)
            for i, (t, shape) in enumerate(zip(types, sizes, strict=True))
        ]
        outputs = definition.register(*inputs)
        assert len(outputs) == len(typing.get_args(inspect.signature(definition.register).return_annotation))
        found = [o.dtype for o in outputs]
        assert DataType.BOOL not in found, "no plugin gives a bool"
        assert [*types, *found] in [row for c in definition.autotune(*inputs, outputs) for row in c.rows], "no format"
        kernel, ptx, launch, scalars = definition.aot_impl(*inputs, outputs, 0)
        return Kernel(
            kernel, ptx, {n: getattr(launch, n).at(values) for n in launch.NAMES},
            [s.at(values) for s in scalars.values], found,
        )  # fmt: skip
