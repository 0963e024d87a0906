"""The state that a learned gate reads, from the hidden state at its exit: the piece of the exit's own graph before it.

A bundle keeps no gate's input, and knows its norm only as a graph. So the nodes that lead from the hidden state to the
gate's first product are cut out and run by the engine that will run them later.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile_training.policy.records import Float

_CHUNK = 1024


class GateInput:
    """Hidden states [N, D] at one exit to what its learned gate reads [N, D].

    Raises UsageError where the exit has no learned gate.
    """

    def __init__(self, bundle: Bundle, exit_: int) -> None:
        info, path = bundle.manifest.exits[exit_], bundle.files.path / bundle.manifest.graphs.exits[exit_].path
        if "learned" not in info.gates:
            raise UsageError(
                f"the exit after layer {info.layer} has no learned gate", where=str(bundle.files.path),
                mend="make one with `eecompile exits --gates learned,max_prob`, and build again",
            )  # fmt: skip
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        model = _before_gate(onnx.load(path, load_external_data=False), path.parent)
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._output = model.graph.output[0].name
        self._batched = len(self._session.get_inputs()[0].shape) == 3  # of an exit with a layer, which takes [B, R, D]

    def __call__(self, rows: Float) -> Float:
        """The states [N, D], a chunk at a time."""
        parts = [self._run(chunk) for chunk in _chunks(rows)]
        return np.concatenate(parts) if parts else rows.copy()

    def _run(self, rows: Float) -> Float:
        given = rows[None] if self._batched else rows
        found: Float = self._session.run([self._output], {c.HIDDEN: given})[0]
        return found.reshape(rows.shape)


def gate_inputs_of(bundle: Bundle, exits: Iterable[int]) -> dict[int, GateInput]:
    """Those of several exits, by exit."""
    return {exit_: GateInput(bundle, exit_) for exit_ in exits}


def _chunks(rows: Float) -> list[Float]:
    return [np.ascontiguousarray(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]


def _before_gate(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph from `hidden` to the first operand of the product with the gate's first matrix."""
    graph = model.graph
    wanted = next(node.input[0] for node in graph.node if c.GATE_W1 in node.input)
    nodes, needed = list[onnx.NodeProto](), {wanted}
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= {name for name in node.input if name}
    initialisers = [tensor for tensor in graph.initializer if tensor.name in needed]
    for tensor in initialisers:
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    inputs = [value for value in graph.input if value.name == c.HIDDEN]
    output = onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None)
    piece = onnx.helper.make_graph(nodes, "gate_input", inputs, [output], initialisers)
    return onnx.helper.make_model(
        piece, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )
