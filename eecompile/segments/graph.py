"""A small ONNX graph writer: nodes with generated names, initialisers inline or in a weight file.

Written on onnx's protobuf helpers; it adds names, the opset, and external data by reference. The dialect is opset 24
with standard operators, which ONNX Runtime and TensorRT both parse; ONNX Runtime's own (`RUNTIME_DOMAIN`) appear only
where a build is for it alone.
"""

import hashlib
from collections.abc import Callable, Container, Sequence
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
Pass = Callable[[list[onnx.NodeProto], Container[str]], tuple[list[onnx.NodeProto], bool]]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class GraphWriter:
    """One graph under construction. Values are their names.

    weights: where initialisers with a name of their own are kept; prefix: leads from the graph's file to them. `alias`
    is put behind the names of those that are asked for from now on: the same bytes under another name.
    """

    def __init__(self, name: str, weights: WeightBook, *, file: str = "", prefix: str = "") -> None:
        self.name, self.weights, self.file, self.prefix = name, weights, file or f"{name}.weights", prefix
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.functions: list[onnx.FunctionProto] = []
        self.alias = ""
        self._nodes: list[onnx.NodeProto] = []
        self._written = 0
        self._settled = 0  # nodes that no later rewrite touches
        self._initializers: dict[str, onnx.TensorProto] = {}

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

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A small initialiser kept in the graph file; equal ones are shared."""
        array = np.asarray(values, dtype)
        content = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        name = f"const_{array.dtype.name}_{'x'.join(map(str, array.shape))}_{content}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, make: Callable[[], Values], file: str = "") -> str:
        """An initialiser in a weight file; `make` gives its content the first time any graph asks for it."""
        label = name + self.alias
        if label not in self._initializers:
            stored = self.weights.tensor(file or self.file, name, make)
            self._initializers[label] = proto_from_stored(label, stored, self.prefix)
        return label

    def array(self, name: str, make: Callable[[], NDArray[Any]], file: str = "") -> str:
        """As `weight`, for an array that is stored as it is."""
        return self.weight(name, lambda: Values.of(make()), file)

    def apply(self, rewrite: Pass) -> None:
        """Rewrite the nodes written since the last call; `rewrite` gets them and the names of the initialisers."""
        done = self._nodes[: self._settled]
        fresh, _ = rewrite(self._nodes[self._settled :], self._initializers)
        self._nodes = done + fresh
        self._settled = len(self._nodes)

    def save(self, path: Path, *, layers: int = 0, relative: str = "") -> GraphInfo:
        """Write the model and describe it; `relative` is its path in the bundle (default: under segments/)."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(info) for info in self.inputs],
            [_value_info(info) for info in self.outputs],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self.functions:
            opsets.append(helper.make_opsetid(c.DECISION_DOMAIN, int(c.DECISION_VERSION)))
        if any(node.domain == RUNTIME_DOMAIN for node in self._nodes):
            opsets.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
        model = helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=IR_VERSION, producer_name="eecompile"
        )
        path.write_bytes(model.SerializeToString(deterministic=True))
        where = relative or f"segments/{path.name}"
        return GraphInfo(path=where, inputs=self.inputs, outputs=self.outputs, layers=layers)


def _value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, _TYPES[info.dtype], info.shape)
