"""A small ONNX graph writer: nodes with generated names, initialisers inline or in a weight file.

Written on onnx's protobuf helpers; it adds names, the opset, and external data by reference. Graphs are opset 24 with
standard operators, which ONNX Runtime and TensorRT both parse; ONNX Runtime's own (`RUNTIME_DOMAIN`) appear only where
a build is for it alone. A form (`Form`) turns a finished graph into another dialect or type when it is saved.
"""

import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from eecompile import contract as c
from eecompile.schema import Dtype, GraphInfo, TensorInfo
from eecompile.segments.weights import Values, WeightBook, proto_from_stored

OPSET = 24
IR_VERSION = 11
RUNTIME_DOMAIN = "com.microsoft"
DEVICE_FILE = "device.weights"  # of weights in a type that only a device's graphs take
Fusion = Callable[[list[onnx.NodeProto], Container[str]], tuple[list[onnx.NodeProto], bool]]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True)
class Form:
    """What becomes of a graph when it is saved. passes: in order, each rewrites the graph and says whether it did.
    functions: whether model-local functions are written with their bodies. quantizes: 8-bit products are written by
    QuantizeLinear and DequantizeLinear (scaled.py). check: raises where the model is not what it
    should be. prefix: of the file's name. sizes: symbols of shapes that are fixed, as (symbol, size).
    """

    prefix: str = ""
    opset: int = OPSET
    ir_version: int = IR_VERSION
    functions: bool = True
    quantizes: bool = False
    passes: "tuple[Callable[[GraphWriter], bool], ...]" = ()
    check: Callable[[onnx.ModelProto], None] | None = None
    sizes: tuple[tuple[str, int], ...] = ()

    def fixed(self, infos: list[TensorInfo]) -> list[TensorInfo]:
        """Inputs or outputs with the sizes that this form fixes."""
        sizes: dict[int | str, int] = dict(self.sizes)
        return [t.model_copy(update={"shape": [sizes.get(d, d) for d in t.shape]}) for t in infos]


class GraphWriter:
    """One graph under construction. Values are their names.

    weights: where initialisers with a name of their own are kept; prefix: leads from the graph's file to them. `alias`
    is put behind the names of those that are asked for from now on: the same bytes under another name.
    """

    def __init__(
        self, name: str, weights: WeightBook, *, file: str = "", prefix: str = "", form: Form | None = None
    ) -> None:
        self.name, self.weights, self.file, self.prefix = name, weights, file or f"{name}.weights", prefix
        self.form = form or Form()
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.functions: list[onnx.FunctionProto] = []
        self.alias = ""
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._written = 0
        self._settled = 0  # nodes that no later fusion touches

    def input(self, name: str, dtype: Dtype, *shape: int | str) -> str:
        """Declare a graph input."""
        self.inputs.append(TensorInfo(name=name, dtype=dtype, shape=list(shape)))
        return name

    def output(self, value: str, name: str, dtype: Dtype, *shape: int | str) -> None:
        """Make `value` a graph output called `name`."""
        self.outputs.append(TensorInfo(name=name, dtype=dtype, shape=list(shape)))
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"out_{name}"))

    def op(self, kind: str, *inputs: str, named: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name (`named`, or a generated one)."""
        return self.ops(kind, 1, *inputs, named=(named,) if named else (), domain=domain, **attributes)[0]

    def ops(
        self, kind: str, count: int, *inputs: str, named: Sequence[str] = (), domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Add a node with `count` outputs and return their names."""
        label = f"{kind}_{self._written}"
        self._written += 1
        names = list(named) or [label if count == 1 else f"{label}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=label, domain=domain, **attributes))
        return names

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node as it is."""
        self._nodes.append(node)

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A small initialiser kept in the graph file; equal ones are shared."""
        array = np.asarray(values, dtype)
        content = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        name = f"const_{array.dtype.name}_{'x'.join(map(str, array.shape))}_{content}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, make: Callable[[], Values], file: str = "") -> str:
        """An initialiser in a weight file; `make` gives its content the first time any graph asks for it."""
        label = name + self.alias
        if label not in self.initializers:
            stored = self.weights.tensor(file or self.file, name, make)
            self.initializers[label] = proto_from_stored(label, stored, self.prefix)
        return label

    def narrowed(self, name: str, type_: int) -> str:
        """The weight `name`, float32, in a smaller floating-point type (an onnx.TensorProto one), stored once."""
        label = f"{name}.{TensorProto.DataType.Name(type_).lower()}"
        return self.weight(label, lambda: Values.narrowed(self.weights.read(name), type_, name), DEVICE_FILE)

    def array(self, name: str, make: Callable[[], NDArray[Any]], file: str = "") -> str:
        """As `weight`, for an array that is stored as it is."""
        return self.weight(name, lambda: Values.of(make()), file)

    def apply(self, fuse: Fusion) -> None:
        """Rewrite the nodes written since the last call; `fuse` gets them and the names of the initialisers."""
        done = self._nodes[: self._settled]
        fresh, _ = fuse(self._nodes[self._settled :], self.initializers)
        self._nodes = done + fresh
        self._settled = len(self._nodes)

    def rewrite(self, rule: "Callable[[GraphWriter, onnx.NodeProto], bool]") -> bool:
        """Write the graph again, node by node: `rule` writes what is to stand in a node's place and returns True, or
        returns False where the node is to stay. Returns whether it did the former at all."""
        nodes, self._nodes, modified = self._nodes, [], False
        for node in nodes:
            if rule(self, node):
                modified = True
            else:
                self._nodes.append(node)
        return modified

    def prune(self) -> bool:
        """Drop nodes that nothing needs, and initialisers that no node takes; returns whether there were any."""
        needed, kept = {info.name for info in self.outputs}, []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        used = {name: tensor for name, tensor in self.initializers.items() if name in needed}
        modified = len(kept) < len(self._nodes) or len(used) < len(self.initializers)
        self._nodes, self.initializers = kept[::-1], used
        return modified

    def save(self, path: Path, *, layers: int = 0, relative: str = "") -> GraphInfo:
        """Write the model in the graph's form and describe it; `relative` is its path in the bundle (default: under
        segments/)."""
        for rewrite in self.form.passes:
            rewrite(self)
        self.inputs, self.outputs = self.form.fixed(self.inputs), self.form.fixed(self.outputs)
        model = self._model()
        if self.form.check is not None:
            self.form.check(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        where = relative or f"segments/{path.name}"
        return GraphInfo(path=where, inputs=self.inputs, outputs=self.outputs, layers=layers)

    def _model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(info) for info in self.inputs],
            [_value_info(info) for info in self.outputs],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", self.form.opset)]
        if self.functions:
            opsets.append(helper.make_opsetid(c.DECISION_DOMAIN, int(c.DECISION_VERSION)))
        if any(node.domain == RUNTIME_DOMAIN for node in self._nodes):
            opsets.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
        bodies = self.functions if self.form.functions else []
        version = self.form.ir_version
        return helper.make_model(
            graph, opset_imports=opsets, functions=bodies, ir_version=version, producer_name="eecompile"
        )


class GraphFolder:
    """Where the graphs of a bundle are written, all in one form, with the weights of one book."""

    def __init__(self, path: Path, book: WeightBook, form: Form | None = None) -> None:
        self.path, self.book, self.form = path, book, form or Form()

    def write(self, name: str, write: Callable[[GraphWriter], object], layers: int = 0) -> GraphInfo:
        """Write the graph called `name`, which `write` fills."""
        g = GraphWriter(name, self.book, form=self.form)
        write(g)
        return g.save(self.path / f"{self.form.prefix}{name}.onnx", layers=layers)


def element_type(dtype: str) -> int:
    """ONNX's number for a type, as "float16"."""
    return int(_TYPES[dtype])


def _value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, _TYPES[info.dtype], info.shape)
