"""How far rows are from where they should be: through Polygraphy's comparator where it is installed, else in numpy.

Rows are divided by a size of the expected row before they are compared, since hidden states grow with depth and a few
tokens have values a thousand times those of the rest. Two figures are read:

largest  the largest error of any element, over the largest magnitude of its expected row
mean     the mean error of all elements, over the root mean square of their expected row
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Statistic = Literal["largest", "mean"]
Measure = Callable[[Float, Float, str, float], tuple[float, bool]]

_POLYGRAPHY_STATISTIC = {"largest": "max", "mean": "mean"}


@dataclass(frozen=True)
class Comparator:
    """`name` says what compares; `measure` gives (figure, whether it is at most the bound) of scaled rows."""

    name: str
    measure: Measure

    def __call__(
        self, actual: Float, expected: Float, bounds: Mapping[Statistic, float]
    ) -> dict[Statistic, tuple[float, bool]]:
        """Each bounded figure of rows [N, ..], and whether it holds; NaN and infinity never do."""
        found: dict[Statistic, tuple[float, bool]] = {}
        for statistic, bound in bounds.items():
            found[statistic] = self.measure(*scaled(actual, expected, statistic), statistic, bound)
        return found


def find_comparator() -> Comparator:
    """Polygraphy's comparator, or the same arithmetic in numpy where Polygraphy is not installed."""
    try:
        import polygraphy
        import polygraphy.comparator
    except ImportError:
        return Comparator("numpy (polygraphy is not installed)", measure_with_numpy)
    return Comparator(f"polygraphy {polygraphy.__version__}", measure_with_polygraphy)


def measure_with_numpy(actual: Float, expected: Float, statistic: str, bound: float) -> tuple[float, bool]:
    """The largest or the mean absolute difference, and whether it is at most `bound`."""
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    figure = float(difference.max() if statistic == "largest" else difference.mean())
    return figure, figure <= bound


def measure_with_polygraphy(actual: Float, expected: Float, statistic: str, bound: float) -> tuple[float, bool]:
    """As `measure_with_numpy`, by `Comparator.compare_accuracy` over two filled-in results."""
    from polygraphy import comparator
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    compare = simple(atol=bound, rtol=0.0, check_error_stat=_POLYGRAPHY_STATISTIC[statistic])
    seen: dict[str, Any] = {}

    def kept(engine: Any, reference: Any) -> Any:
        result = compare(engine, reference)
        seen.update(result)
        return result

    results = RunResults()
    for runner, rows in (("engine", actual), ("reference", expected)):
        results.append((runner, [IterationResult({"rows": rows}, runner_name=runner)]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        passed = bool(comparator.Comparator.compare_accuracy(results, compare_func=kept))
    return float(getattr(seen["rows"], f"{_POLYGRAPHY_STATISTIC[statistic]}_absdiff")), passed


def scaled(actual: Float, expected: Float, statistic: Statistic) -> tuple[Float, Float]:
    """Both of rows [N, ..] over the size of the expected one."""
    size = _row_size(expected, statistic)
    with np.errstate(invalid="ignore", over="ignore"):
        return actual / size, expected / size


def _row_size(expected: Float, statistic: Statistic) -> Float:
    flat = np.abs(expected.reshape(len(expected), -1))
    size = flat.max(axis=1) if statistic == "largest" else np.sqrt(np.mean(np.square(flat), axis=1))
    sized: Float = np.maximum(size, np.finfo(np.float32).tiny).reshape(-1, *[1] * (expected.ndim - 1))
    return sized
