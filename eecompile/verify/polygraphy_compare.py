"""Polygraphy comparison functions (`--compare-func-script`): rows within a precision's tolerance, flips named.

`same_<precision>` compare two engines on the same weights; `comparison` makes others of rules (outputs.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from eecompile import contract as c
from eecompile.verify.outputs import OutputRules, same_weights

Compare = Callable[[Any, Any], "OrderedDict[str, bool]"]


def comparison(rules: OutputRules) -> Compare:
    """A function of two IterationResults that says of each common output whether it holds, as Polygraphy's own do."""

    def compare_outputs(first: Any, second: Any) -> "OrderedDict[str, bool]":
        from polygraphy.logger import G_LOGGER

        found = rules.judge(dict(first.items()), dict(second.items()))
        if not found:
            G_LOGGER.critical(f"no output in common: {list(first.keys())} and {list(second.keys())}")
        G_LOGGER.start(f"eecompile compares {first.runner_name} with {second.runner_name}")
        for name, judged in found.items():
            say = G_LOGGER.info if judged.passed else G_LOGGER.error
            say(f"{'PASSED' if judged.passed else 'FAILED'} | {name}: {judged.said}")
            for line in judged.flips:
                say(f"  {name} {line}")
        return OrderedDict((name, judged.passed) for name, judged in found.items())

    return compare_outputs


def _same(precision: str) -> Compare:
    return comparison(same_weights(precision))


BY_PRECISION: Mapping[str, str] = {precision: f"same_{precision}" for precision in c.PRECISIONS}
same_fp32, same_fp16, same_int8, same_w8a8, same_fp8, same_int4 = map(_same, c.PRECISIONS)
