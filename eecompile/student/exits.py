"""early_exit.json: where a student may stop, how sure it must be, and where that knowledge came from.

Adapters and gates are tensors in early_exit.safetensors, named "exit.<layer>.<part>": adapter.weight [D, D] (in, out),
adapter.bias [D], those of modules (modules.py), gate.w1 [D, U], gate.b1 [U], gate.w2 [U, 1], gate.b2 [1], all float32.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import CalibrationResult, Criterion, Name, Sha256, Strict, Text, Thresholds
from eecompile.student.cycles import CycleSpec
from eecompile.student.loops import Loops
from eecompile.student.store import WeightStore, read_header

GATE_PARTS = ("w1", "b1", "w2", "b2")


class ExitSpec(Strict):
    """An exit at the `layer`-th layer that runs. All `gates` must fire; `draft` are thresholds of exact mode's drafts.

    placement, as in EE-LLM (Chen et al., 2024): "post" reads what the layer gives, "pre" what it is given, that is what
    the layer before it gives. A bundle knows neither: there an exit is called by its `depth`.
    """

    layer: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    placement: Literal["pre", "post"] = "post"
    adapter: Literal["norm", "affine", "mlp", "layer"] = "norm"
    gates: Annotated[list[Criterion], Field(min_length=1, max_length=4)]
    gate_units: Annotated[int, Field(ge=0, le=4096)] = 0
    draft: Thresholds | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if ("learned" in self.gates) != (self.gate_units > 0):
            raise ValueError("gate_units and a learned gate belong together")
        if len(set(self.gates)) != len(self.gates):
            raise ValueError("a gate is listed twice")
        if self.draft is not None and set(self.draft) != set(self.gates):
            raise ValueError("draft needs one threshold for each gate")
        if not self.depth:
            raise ValueError("an exit before the first layer would read the embeddings alone")
        return self

    @property
    def depth(self) -> int:
        """Layers that run before this exit."""
        return self.layer - (self.placement == "pre")


class EarlyExit(Strict):
    """The schema of early_exit.json. `weights` is the SHA-256 of early_exit.safetensors."""

    version: Literal[1] = 1
    exits: Annotated[list[ExitSpec], Field(max_length=c.MAX_EXITS)]
    schedule: Loops | None = None
    cycles: Annotated[list[CycleSpec], Field(max_length=c.MAX_EXITS)] = Field(default_factory=list)
    weights: Sha256 | None = None
    calibrations: Annotated[list[CalibrationResult], Field(max_length=256)] = Field(default_factory=list)
    provenance: dict[Name, Text | int | float | bool | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _calibrations_are_of_these_exits(self) -> Self:
        for found in self.calibrations:
            if found.chosen is not None and found.chosen >= len(found.path):
                raise ValueError(f"a calibration chooses point {found.chosen} of {len(found.path)}")
            if any(len(point.thresholds) != len(self.exits) for point in found.path):
                raise ValueError("a calibration is of another number of exits")
        return self


@dataclass(frozen=True)
class StudentExits:
    """The exits of a student with access to their tensors."""

    schema: EarlyExit
    store: WeightStore | None = None

    @property
    def schedules(self) -> dict[str, Any]:
        """The fields of the schema that say how the layers run, which new exits leave as they are."""
        return {"schedule": self.schema.schedule, "cycles": self.schema.cycles}

    def tensor(self, layer: int, part: str) -> NDArray[np.float32]:
        """The tensor "exit.<layer>.<part>", float32."""
        assert self.store is not None
        return self.store.read(f"exit.{layer}.{part}")

    def gate(self, exit_: ExitSpec) -> dict[str, NDArray[np.float32]] | None:
        """The learned gate's weights by part, or None where the exit has none."""
        return {p: self.tensor(exit_.layer, f"gate.{p}") for p in GATE_PARTS} if exit_.gate_units else None


def declared_exits(layers: Sequence[int], found: StudentExits | None = None) -> StudentExits:
    """Plain exits: final norm and head at each layer, uncalibrated, drafting where p > 0.9.

    found: what the checkpoint's early_exit.json says; how its layers run stays.
    """
    outside = [n for n in layers if not 1 <= n <= c.MAX_LAYERS]
    if outside:
        raise UsageError(f"exit {outside[0]} is not a layer", mend="exits are numbers of layers run, from 1")
    exits = [ExitSpec(layer=n, gates=["max_prob"], draft={"max_prob": 0.9}) for n in layers]
    kept = {} if found is None else found.schema.model_dump(include={"weights"}) | found.schedules
    schema = EarlyExit(exits=exits, provenance={"source": "declared on the command line"}).model_copy(update=kept)
    return StudentExits(schema, None if found is None else found.store)


def load_exits(directory: Path) -> StudentExits:
    """Read and check early_exit.json and its tensors; a directory without it has no exits."""
    path = directory / c.EARLY_EXIT
    if not path.exists():
        return StudentExits(EarlyExit(exits=[]))
    try:
        schema = EarlyExit.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"not a valid early_exit.json: {e}", where=str(path)) from e
    weights = directory / c.EARLY_EXIT_WEIGHTS
    if schema.weights is None:
        return StudentExits(schema)
    store = WeightStore(directory, read_header(weights))
    if hashlib.sha256(weights.read_bytes()).hexdigest() != schema.weights:
        raise UsageError("the exits' weights are not the ones early_exit.json names", where=str(weights))
    return StudentExits(schema, store)


def check_exits(exits: StudentExits, layers: int, hidden: int) -> None:
    """Raise UsageError unless the exits are in order, inside the model and have every tensor they need."""
    at = [e.depth for e in exits.schema.exits]
    if at != sorted(set(at)):
        raise UsageError(f"exits {at} are not in strictly increasing order", mend="list each layer once, shallow first")
    outside = [n for n in at if n >= layers]
    if outside:
        raise UsageError(
            f"exit {outside[0]} is not before the last of {layers} layers",
            mend=f"exits are numbers of layers run, 1 to {layers - 1}",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for e in exits.schema.exits:
        shapes |= _shapes(e, hidden)
    if shapes and exits.store is None:
        raise UsageError("the exits have adapters or gates but no weights", where=c.EARLY_EXIT)
    if exits.store is not None:
        exits.store.require(shapes)
        bad = [n for n in shapes if not np.isfinite(exits.store.read(n)).all()]
        if bad:
            raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="fit the exits again")


def save_exits(directory: Path, schema: EarlyExit, tensors: Mapping[str, NDArray[np.float32]]) -> EarlyExit:
    """Write early_exit.json and, if there are tensors, early_exit.safetensors; returns the schema as written."""
    from safetensors.numpy import save

    digest = None
    if tensors:
        data = save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
        (directory / c.EARLY_EXIT_WEIGHTS).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
    schema = schema.model_copy(update={"weights": digest})
    text = json.dumps(schema.model_dump(mode="json"), indent=2, allow_nan=False)
    (directory / c.EARLY_EXIT).write_text(text + "\n", encoding="utf-8")
    return schema


def _shapes(e: ExitSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    parts: dict[str, tuple[int, ...]] = {}
    if e.adapter == "affine":
        parts |= {"adapter.weight": (hidden, hidden), "adapter.bias": (hidden,)}
    if e.gate_units:
        u = e.gate_units
        parts |= {"gate.w1": (hidden, u), "gate.b1": (u,), "gate.w2": (u, 1), "gate.b2": (1,)}
    return {f"exit.{e.layer}.{part}": shape for part, shape in parts.items()}
