"""The report's section on what a classifier's bench measured."""

from eecompile.bench.classifier import ClassifierBench, classifier_tables
from eecompile.bench.markup import section, table


def classifier_section(bench: ClassifierBench) -> str:
    """Every contender at every batch size."""
    title, columns, rows = classifier_tables(bench)[0]
    lead = f"{title}. Speed-ups are over mode full at the same batch size, medians of rounds in which all took turns."
    return section("speed", "Speed", lead, table(columns, [[str(cell) for cell in row] for row in rows]))


def classifier_verdict(bench: ClassifierBench) -> str:
    """The report in a sentence."""
    found = [r for r in bench.results if r.contender == "confident"]
    if not found:
        return "No exit is open in this bundle's policy, or none is calibrated: every text runs at full depth."
    speeds = " and ".join(f"{r.speedup:.2f} times at {r.batch} texts a batch" for r in found)
    quality = f"agrees with the full model on {found[-1].agreement:.1%} of its answers"
    if bench.task == "regression":
        quality = f"is off by {found[-1].mean_off:.3g} on average"
    return f"Confident mode classifies at {speeds} the speed of full depth and {quality}."
