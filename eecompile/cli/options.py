"""Option values that need parsing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from eecompile import contract as c
from eecompile.bundle.manifest import ExitPolicy, Manifest
from eecompile.errors import UsageError
from eecompile.schema import Criterion, Thresholds

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
BACKEND = click.option(
    "--backend", type=click.Choice(["auto", *c.BACKENDS]), default="auto", show_default=True,
    help="auto: the engines that were built on this machine, else ONNX Runtime. cuda: ONNX Runtime on a GPU.",
)  # fmt: skip
PLUGIN = click.option(
    "--plugin", type=click.Path(path_type=Path), help="The exit decision's library, where engines call it."
)
DECISION = click.option(
    "--decision", type=click.Choice(c.DECISIONS), default="auto", show_default=True,
    help="Who decides at exits of engines. pinned: the host, pass by pass. conditional: the GPU, one launch a token.",
)  # fmt: skip
KEY = click.option("--key", type=click.Path(path_type=Path), help="Ed25519 key in PEM form.")


def refuse_given(*names: str, kind: str = "classifies texts") -> None:
    """Raise UsageError if one of these options was given on the command line: a model of this `kind` has none."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = f"--{name.rstrip('_').replace('_', '-')}"
            raise UsageError(f"{option} is not for a model that {kind}", mend="leave the option out")


def ids_from_text(text: str, option: str) -> list[int]:
    """Integers separated by commas; raises UsageError naming the option."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as e:
        raise UsageError(f"{option} {text!r} is not a list of numbers", mend=f"as in {option} 6,12,18") from e


def names_from_text(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def thresholds_from_options(
    values: Sequence[str], manifest: Manifest, current: Sequence[ExitPolicy], mode: str
) -> dict[int, Thresholds | None]:
    """`LAYER[:CRITERION]=VALUE` or `LAYER=never`, on top of the current thresholds of the exits they name.

    A gate of a closed exit that no value names is left wide open, which only drafts may have.
    """
    gates = {info.layer: info.gates for info in manifest.exits}
    changed: dict[int, Thresholds | None] = {}
    for layer, change in changes_from_options(values, gates).items():
        if change is None:
            changed[layer] = None
            continue
        policy = next(e for e in current if e.layer == layer)
        known = (policy.confident if mode == "confident" else policy.draft) or {}
        wide: Thresholds = {g: 100.0 if g == "entropy" else -100.0 for g in gates[layer]}
        changed[layer] = {g: change.get(g, known.get(g, _bounded(g, wide[g], manifest))) for g in gates[layer]}
    return changed


def changes_from_options(
    values: Sequence[str], gates: Mapping[int, Sequence[Criterion]]
) -> dict[int, Thresholds | None]:
    """Parse threshold options into changes by exit layer (None: never); `gates` are the exits' own."""
    changes: dict[int, Thresholds | None] = {}
    for value in values:
        place, _, number = value.partition("=")
        layer_text, _, criterion = place.partition(":")
        if not number or not layer_text.strip().isdigit():
            raise UsageError(f"--threshold {value!r} is not LAYER[:CRITERION]=VALUE", mend="as in 18:max_prob=0.9")
        layer = int(layer_text)
        if layer not in gates:
            raise UsageError(f"there is no exit at layer {layer}", mend=f"exits: {sorted(gates)}")
        if number == "never":
            changes[layer] = None
            continue
        merged = dict(changes.get(layer) or {})
        merged[_criterion(criterion, gates[layer], value)] = _number(number, value)
        changes[layer] = merged
    return changes


def _criterion(criterion: str, gates: Sequence[Criterion], value: str) -> Criterion:
    if not criterion and len(gates) == 1:
        return gates[0]
    for gate in gates:
        if gate == criterion:
            return gate
    raise UsageError(f"--threshold {value!r} names none of the exit's gates", mend=f"gates: {', '.join(gates)}")


def _number(text: str, value: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise UsageError(f"--threshold {value!r} has no number after =") from e


def _bounded(gate: Criterion, value: float, manifest: Manifest) -> float:
    from eecompile.bundle.ranges import criterion_range

    low, high = criterion_range(gate, manifest.classes)
    return min(max(value, low), high)


MODE = click.option("--mode", type=click.Choice(c.MODES), default="full", show_default=True, help="See the README.")
