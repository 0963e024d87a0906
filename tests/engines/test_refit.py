"""Putting weights back into a stripped engine: all of them, from the graph that it was built from, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eecompile.engines.refit import refit_engine
from eecompile.errors import IntegrityError


class Engine:
    """A stripped engine: names and sizes of the weights that it lacks."""

    def __init__(self, **sizes: int) -> None:
        self.sizes, self.weights = sizes, dict[str, Any]()


class TensorRT:
    """A double of what refitting needs. A parser sets weights by name and fails where one has another size; the engine
    is whole only once `refit_cuda_engine` was called with none missing."""

    class Refitter:
        def __init__(self, engine: Engine, logger: object) -> None:
            assert logger is not None
            self.engine, self.found = engine, dict[str, Any]()

        def get_missing_weights(self) -> list[str]:
            return [name for name in self.engine.sizes if name not in self.found]

        def refit_cuda_engine(self) -> bool:
            if self.get_missing_weights() or "poison" in self.found:
                return False
            self.engine.weights = self.found
            return True

    class Error:
        def desc(self) -> str:
            return "a weight of another size"

    class OnnxParserRefitter:
        num_errors = 1

        def __init__(self, refitter: Any, logger: object) -> None:
            self.refitter = refitter

        def get_error(self, index: int) -> "TensorRT.Error":
            assert index < self.num_errors
            return TensorRT.Error()

        def refit_from_file(self, path: str) -> bool:
            for tensor in onnx.load(path).graph.initializer:
                values = numpy_helper.to_array(tensor)
                if self.refitter.engine.sizes.get(tensor.name, values.size) != values.size:
                    return False
                self.refitter.found[tensor.name] = values
            return True


def graph_at(path: Path, **sizes: int) -> Path:
    tensors = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()]
    onnx.save(helper.make_model(helper.make_graph([], "weights", [], [], tensors)), path)
    return path


def test_a_stripped_engine_gets_all_its_weights(tmp_path: Path) -> None:
    engine = Engine(query=4, key=2)
    refit_engine(TensorRT, engine, graph_at(tmp_path / "g.onnx", query=4, key=2), object())
    assert engine.weights.keys() == {"query", "key"}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"query": 3, "key": 2}, "another size"),
        ({"query": 4}, "1 weights of the engine are not in it: key"),
        ({"query": 4, "key": 2, "poison": 1}, "does not take"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, held: dict[str, int], said: str) -> None:
    engine, path = Engine(query=4, key=2), graph_at(tmp_path / "g.onnx", **held)
    with pytest.raises(IntegrityError, match=said) as refused:
        refit_engine(TensorRT, engine, path, object())
    assert "g.onnx" in str(refused.value)
    assert not engine.weights
