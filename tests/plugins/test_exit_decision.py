"""The exit decision's C++: its arithmetic against float64, the ONNX function and the host rule; its kernels compile."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from toolchain import CAPABILITIES, SOURCES, compiler, estimate

from eecompile import contract as c
from eecompile.segments.decision import exit_decision
from eecompile.segments.graph import GraphWriter
from eecompile.segments.weights import WeightBook
from eecompile.verify.criteria import criteria_of

ANSWER = np.dtype([("token", "i4"), ("max_prob", "f4"), ("margin", "f4"), ("entropy", "f4"), ("flag", "i4")])
ORDERS = 5  # of add and merge, in host_test.cpp
MOST_REGISTERS = 64  # 1,024 threads an SM
WIDTHS = {1: 6000, 2: 16000, 3: 16000, 7: 16000, 31: 12000, 32: 12000, 33: 12000, 64: 8000, 127: 2000, 255: 1000,
          256: 1000, 257: 1000, 1023: 400, 1024: 400, 1025: 400}  # fmt: skip
Ask = Callable[[Any, Any], Any]


def close(width: int) -> dict[str, float]:
    """What rounding may change a value by: float32 sums of `width` terms, one after the other."""
    error = 1e-6 * max(1.0, width / 64)
    return {c.MAX_PROB: error, c.MARGIN: error, c.ENTROPY: 4 * error}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """logits [N, V], bounds [N, 3] -> answers [N, ORDERS] of reduction.h."""
    program = tmp_path_factory.mktemp("host") / "host_test"
    flags = ["-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    subprocess.run([compiler("g++"), *flags, SOURCES / "host_test.cpp", "-o", program], check=True)

    def run(logits: Any, bounds: Any) -> Any:
        rows = np.concatenate([logits, bounds], axis=1, dtype=np.float32)
        said = subprocess.run([program, str(logits.shape[1])], input=rows.tobytes(), stdout=subprocess.PIPE, check=True)
        return np.frombuffer(said.stdout, ANSWER).reshape(len(logits), ORDERS)

    return run


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The same of the ONNX function: its outputs by name, each [N]."""
    folder = tmp_path_factory.mktemp("graph")
    g = GraphWriter("decision", WeightBook(folder))
    outputs = exit_decision(g, g.input(c.LOGITS, "float32", "N", "V"), g.input(c.THRESHOLDS, "float32", "N", 3))
    for value, dtype in zip(outputs, ("int64", "float32", "float32", "float32", "bool"), strict=True):
        g.output(value, value, dtype, "N")  # type: ignore[arg-type]
    g.save(folder / "decision.onnx")
    session = tiny.ort_session(folder / "decision.onnx")

    def run(logits: Any, bounds: Any) -> dict[str, Any]:
        values = session.run(list(outputs), {c.LOGITS: logits, c.THRESHOLDS: bounds})
        return dict(zip(outputs, values, strict=True))

    return run


def rows_of(width: int, count: int) -> tuple[Any, Any]:
    """Logits [count, width] of every kind, and bounds [count, 3], float32."""
    rng = np.random.default_rng(width)
    kinds = [
        lambda n: rng.standard_normal((n, width)) * rng.choice([0.01, 1, 5, 30], (n, 1)),
        lambda n: rng.integers(-2, 3, (n, width)),  # ties
        lambda n: np.repeat(rng.standard_normal((n, 1)) * 100, width, axis=1),  # all equal
        lambda n: np.sort(rng.standard_normal((n, width)) * 8, axis=1)[:, :: rng.choice([-1, 1])],
        lambda n: rng.standard_normal((n, width)) * 1e-41,  # subnormal
        lambda n: rng.choice([-3e38, -1e30, -200, -0.0, 0, 1e30, 3e38], (n, width)),
        lambda n: spoilt(rng.standard_normal((n, width)) * 4, rng),
        lambda n: rng.choice([-np.inf, 0.5, np.inf, np.nan, 3e38], (n, width), p=[0.4, 0.3, 0.1, 0.1, 0.1]),
    ]
    logits = np.concatenate([kind(count // len(kinds)) for kind in kinds]).astype(np.float32)
    bounds = np.tile(np.array(c.NO_BOUND), (len(logits), 1))
    drawn = rng.uniform(size=bounds.shape) * [1, 1, np.log(width) + 0.1]
    asked = rng.uniform(size=bounds.shape) < 0.6
    bounds[asked] = drawn[asked]
    bounds[rng.uniform(size=bounds.shape) < 0.01] = np.nan
    return logits, bounds.astype(np.float32)


def spoilt(logits: Any, rng: np.random.Generator) -> Any:
    """The same with a NaN, an infinity or a huge number in one place of each row."""
    place = rng.integers(0, logits.shape[1], len(logits))
    logits[np.arange(len(logits)), place] = rng.choice([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38], len(logits))
    return logits


def in_float64(logits: Any) -> dict[str, Any]:
    """The four values by the rules that reduction.h states."""
    x = logits.astype(np.float64)
    known = np.where(np.isnan(x), -np.inf, x)
    peak = known.max(axis=1)
    dead = np.isnan(x).any(axis=1) | ~np.isfinite(peak)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = x - peak[:, None]
        overflows = np.isneginf(logits - peak[:, None].astype(np.float32)).any(axis=1)
    weights = np.exp(np.where(dead[:, None], 0, shifted))
    total = weights.sum(axis=1)
    second = np.sort(weights, axis=1)[:, -2] if x.shape[1] > 1 else 0
    moment = (weights * np.where(weights > 0, shifted, 0)).sum(axis=1)
    values = {c.MAX_PROB: 1 / total, c.MARGIN: (1 - second) / total, c.ENTROPY: np.log(total) - moment / total}
    for name, spoils in ((c.MAX_PROB, dead), (c.MARGIN, dead), (c.ENTROPY, dead | overflows)):
        values[name][spoils] = np.nan
    return {c.TOKEN: known.argmax(axis=1), **values}


def surely(values: dict[str, Any], bounds: Any, width: int) -> tuple[Any, Any]:
    """Whether each row opens by these values, and whether that is beyond rounding."""
    stacked = np.stack([values[name] for name in c.HEAD_CRITERIA], axis=1)
    opens = (stacked > bounds) * [True, True, False] + (stacked < bounds) * [False, False, True]
    near = np.abs(stacked - bounds) <= [close(width)[name] for name in c.HEAD_CRITERIA]
    return opens.astype(bool).all(axis=1), ~near.any(axis=1)


def test_enough_rows() -> None:
    assert sum(len(rows_of(width, count)[0]) for width, count in WIDTHS.items()) >= 100_000


@pytest.mark.parametrize("width", WIDTHS)
def test_every_order_equals_float64(ask: Ask, width: int) -> None:
    logits, bounds = rows_of(width, WIDTHS[width])
    said, exact = ask(logits, bounds), in_float64(logits)
    opens, sure = surely(exact, bounds, width)
    assert 0.02 < opens.mean() < 0.9
    assert sure.mean() > 0.9
    for order in range(ORDERS):
        np.testing.assert_array_equal(said["token"][:, order], exact[c.TOKEN])
        for name in c.HEAD_CRITERIA:
            np.testing.assert_allclose(said[name][:, order], exact[name], rtol=0, atol=close(width)[name], err_msg=name)
        np.testing.assert_array_equal(said["flag"][sure, order], opens[sure])


@pytest.mark.parametrize("width", [width for width in WIDTHS if width > 1])  # TopK wants two
def test_equals_the_onnx_function(ask: Ask, graph: Ask, width: int) -> None:
    logits, bounds = rows_of(width, WIDTHS[width])
    said, node = ask(logits, bounds)[:, 0], graph(logits, bounds)
    numbers = ~np.isnan(logits).any(axis=1)  # where TopK puts a NaN is its own affair
    _, sure = surely(in_float64(logits), bounds, width)
    np.testing.assert_array_equal(said["token"][numbers], node[c.TOKEN][numbers])
    for name in c.HEAD_CRITERIA:
        np.testing.assert_allclose(said[name], node[name], rtol=0, atol=2 * close(width)[name], err_msg=name)
    np.testing.assert_array_equal(said["flag"][sure], node[c.EXIT_FLAG][sure])


def test_equals_the_host_rule(ask: Ask) -> None:
    """The values that a bundle's verification and calibration go by."""
    logits = np.random.default_rng(0).standard_normal((500, 333)).astype(np.float32) * 3
    said, exact = ask(logits, np.tile(np.array(c.NO_BOUND), (500, 1)))[:, 0], criteria_of(logits)
    for name in c.HEAD_CRITERIA:
        np.testing.assert_allclose(said[name], exact[name], rtol=0, atol=close(333)[name])
    assert said["flag"].all()


@pytest.mark.parametrize("criterion", range(3))
def test_bounds_are_strict(ask: Ask, criterion: int) -> None:
    """A row fires where its own value beats the bound; equality does not."""
    logits, _ = rows_of(33, 800)
    logits = logits[np.isfinite(in_float64(logits)[c.ENTROPY])]
    bounds = np.tile(np.array(c.NO_BOUND, np.float32), (len(logits), 1))
    bounds[:, criterion] = ask(logits, bounds)[c.HEAD_CRITERIA[criterion]][:, 0]
    assert not ask(logits, bounds)["flag"][:, 0].any()
    bounds[:, criterion] = np.nextafter(bounds[:, criterion], np.float32(-np.inf if criterion < 2 else np.inf))
    assert ask(logits, bounds)["flag"][:, 0].all()


def test_kernels_compile_without_spills(tmp_path: Path) -> None:
    """For every compute capability that a target names, in one call; the README's table says what was found."""
    flags = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in CAPABILITIES]
    command = [compiler("nvcc"), "-O3", "-std=c++17", "-Xptxas=-v", *flags, "-Werror=all-warnings"]
    made = tmp_path / "kernel.o"
    log = subprocess.run(
        [*command, "-c", SOURCES / "kernel.cu", "-o", made], check=True, capture_output=True, text=True
    )
    tool = estimate()
    found = tool.read_report(log.stdout + log.stderr)
    assert tuple(found) == CAPABILITIES
    assert all(set(by_type) == set(tool.TYPES) for by_type in found.values())
    for registers, shared, spilt in (taken for by_type in found.values() for taken in by_type.values()):
        assert registers <= MOST_REGISTERS
        assert (shared, spilt) == (192, 0)
    assert not set(re.findall(r"(\d+) bytes stack frame", log.stdout + log.stderr)) - {"0"}
    readme = (SOURCES / "README.md").read_text()
    if f"CUDA {tool.number(r'release (.+?),', tool.run(['nvcc', '--version']))}, `-O3`" in readme:
        for sm, by_type in found.items():
            assert f"| {sm} | {', '.join(str(by_type[name][0]) for name in tool.TYPES)} |" in readme


@pytest.mark.parametrize("tile", [4096, 16384])
def test_what_has_to_be_refused_is(tmp_path: Path, tile: int) -> None:
    """Before anything is launched, whatever the size of a tile: elsewhere it would read memory that is not there."""
    for path in SOURCES.glob("*.*"):
        text = path.read_text()
        (tmp_path / path.name).write_text(re.sub(r"kTile = \d+;", f"kTile = {tile};", text))
    program = tmp_path / "refusals"
    sources = [tmp_path / "kernel.cu", Path(__file__).with_name("refusals.cpp")]
    flags = ["-std=c++17", "-O1", "-arch=sm_80", f"-I{tmp_path}"]
    subprocess.run([compiler("nvcc"), *flags, *sources, "-o", program], check=True)
    assert subprocess.run([program], check=False).returncode == 0
