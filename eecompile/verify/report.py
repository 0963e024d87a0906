"""What verification found: frozen values that a table or JSON is made from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Figure = float | int


@dataclass(frozen=True)
class Check:
    """One property that was checked.

    figures: what was measured, by name. tolerance: the bound of each figure that was judged, as text ("<= 0.0001").
    note: what was held against what; where the check failed, what was wrong.
    """

    name: str
    passed: bool
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tolerance: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def detail(self) -> str:
        """The figures with their bounds, and the note: one cell of a table."""
        parts = (f"{name} {_short(value)} {self.tolerance.get(name, '')}" for name, value in self.figures.items())
        figures = ", ".join(part.strip() for part in parts)
        return "; ".join(filter(None, (figures, self.note)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that is not finite becomes null."""
        return {
            "name": self.name,
            "passed": self.passed,
            "figures": {name: value if math.isfinite(value) else None for name, value in self.figures.items()},
            "tolerance": dict(self.tolerance),
            "detail": self.detail,
        }


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of `verify_bundle`.

    digest: the core's. references: what the engines were held against. comparator: what compared the rows.
    commands: Polygraphy command lines that load and run the bundle's graphs one by one (none without Polygraphy).
    """

    digest: str
    precision: str
    references: tuple[str, ...]
    comparator: str
    checks: tuple[Check, ...]
    commands: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `eecompile verify --json`."""
        return {
            "passed": self.passed,
            "digest": self.digest,
            "precision": self.precision,
            "references": list(self.references),
            "comparator": self.comparator,
            "checks": [check.to_dict() for check in self.checks],
            "commands": list(self.commands),
        }


def at_most(bound: float) -> str:
    """The text of an upper bound."""
    return f"<= {bound:g}"


def at_least(bound: float) -> str:
    """The text of a lower bound."""
    return f">= {bound:g}"


def _short(value: Figure) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"
