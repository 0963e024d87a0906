"""The ONNX Runtime engine: bound passes in place, one thread pool a process, and refusals that say what to do."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.engines.ort import OrtEngine, thread_pool, use_threads
from eecompile.errors import IntegrityError, UsageError
from eecompile.schema import GraphInfo
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OrtEngine:
    """double = 2 x, and seven = 7 + x, for x [N, 3]; `state` gets x added in place."""
    tiny.ort_threads()
    folder = tmp_path_factory.mktemp("engine")
    g = GraphWriter("g", WeightBook(folder))
    x, state = g.input("x", "float32", "N", 3), g.input("state", "float32", "N", 3)
    g.output(g.op("Mul", x, g.constant(2, np.float32)), "double", "float32", "N", 3)
    g.output(g.op("Add", x, g.constant(7, np.float32)), "seven", "float32", "N", 3)
    g.output(g.op("Add", x, state), "state_out", "float32", "N", 3)
    return OrtEngine(folder / "g.onnx", g.save(folder / "g.onnx"))


def buffers(rows: int = 2) -> dict[str, Any]:
    state = np.zeros((rows, 3), np.float32)
    arrays = {name: np.zeros((rows, 3), np.float32) for name in ("x", "double", "seven")}
    return {**arrays, "state": state, "state_out": state}


def test_a_pass_reads_and_writes_the_buffers(engine: OrtEngine) -> None:
    bound = buffers()
    run = engine.bind(bound)
    for value in (1, 5):
        bound["x"][:] = value
        run()
        np.testing.assert_array_equal(bound["double"], np.full((2, 3), 2 * value))
        np.testing.assert_array_equal(bound["seven"], np.full((2, 3), 7 + value))


def test_a_buffer_may_be_input_and_output(engine: OrtEngine) -> None:
    bound = buffers()
    run = engine.bind(bound)
    bound["x"][:] = 3
    run()
    run()
    np.testing.assert_array_equal(bound["state"], np.full((2, 3), 6))


def test_outputs_without_a_buffer_are_left_out(engine: OrtEngine) -> None:
    bound = buffers()
    seven = bound.pop("seven")
    run = engine.bind(bound)
    bound["x"][:] = 1
    run()
    np.testing.assert_array_equal(bound["double"], np.full((2, 3), 2))
    assert not seven.any()


def test_an_input_without_a_buffer_is_a_bug(engine: OrtEngine) -> None:
    bound = buffers()
    del bound["x"]
    with pytest.raises(KeyError, match="x"):
        engine.bind(bound)


def test_buffers_live_as_long_as_the_pass(engine: OrtEngine) -> None:
    """A pass keeps what it is bound to: the caller may forget its own references."""
    bound = buffers(rows=4096)
    bound["x"][:] = 2
    state = bound["state"]
    run = engine.bind(bound)
    del bound
    hog = [np.full((4096, 3), 9, np.float32) for _ in range(20)]
    run()
    np.testing.assert_array_equal(state, np.full((4096, 3), 2))
    assert all((array == 9).all() for array in hog)


def test_one_engine_serves_many_threads(engine: OrtEngine) -> None:
    wrong: list[int] = []

    def work(value: int) -> None:
        bound = buffers(rows=value)
        run = engine.bind(bound)
        for turn in range(100):
            bound["x"][:] = turn
            run()
            if not (bound["double"] == 2 * turn).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_what_is_no_model_is_not_intact(tmp_path: Path, content: bytes) -> None:
    tiny.ort_threads()
    (tmp_path / "g.onnx").write_bytes(content)
    info = GraphInfo(path="segments/g.onnx", inputs=[], outputs=[])
    with pytest.raises(IntegrityError, match=r"segments/g\.onnx: ONNX Runtime cannot load it(.|\n)*build the bundle"):
        OrtEngine(tmp_path / "g.onnx", info)


def test_weights_that_are_cut_short_are_not_intact(tmp_path: Path) -> None:
    tiny.ort_threads()
    book = WeightBook(tmp_path)
    g = GraphWriter("g", book)
    x = g.input("x", "float32", 64)
    g.output(g.op("Add", x, g.array("w", lambda: np.ones(64, np.float32))), "y", "float32", 64)
    info = g.save(tmp_path / "g.onnx")
    book.close()
    OrtEngine(tmp_path / "g.onnx", info)
    (tmp_path / "g.weights").write_bytes(bytes(100))
    with pytest.raises(IntegrityError, match="cannot load"):
        OrtEngine(tmp_path / "g.onnx", info)


def test_another_number_of_threads_is_refused() -> None:
    tiny.ort_threads()
    (made,) = thread_pool()
    use_threads(made)
    with pytest.raises(UsageError, match=rf"already runs {made} threads, not {made + 1}(.|\n)*first open"):
        use_threads(made + 1)


def test_a_pool_that_the_application_made_is_used(tmp_path: Path) -> None:
    """ONNX Runtime refuses a second pool; ours then steps back."""
    source = tiny.checkpoint(tmp_path / "checkpoint")
    tiny.bundle_at(tmp_path / "bundle", source)
    program = (
        "import sys, onnxruntime as ort; ort.set_global_thread_pool_sizes(1, 1); from eecompile.runtime import Bundle;"
        "print([t.id for t in Bundle.open(sys.argv[1]).session().generate([1, 2], max_new_tokens=4)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bundle")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tiny.tokens(tiny.Bundle.open(tmp_path / "bundle"), [1, 2], 4))
