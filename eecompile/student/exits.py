"""early_exit.json: where a student may stop, how sure it must be, and where that knowledge came from.

Adapters and gates are tensors in early_exit.safetensors, named "exit.<layer>.<part>": adapter.weight [D, D] (in, out),
adapter.bias [D], those of modules (modules.py), and for each gate that has weights (gate, the learned one; router;
predictor) w1 [in, U], b1 [U], w2 [U, out], b2 [out], without w1 and b1 where a router is linear. A low-rank head is
"head.<name>.down" [rank, D], "head.<name>.up" [V, rank] and, where it says so, "head.<name>.bias" [V], which is added
to its product before the model's own scale, bias and bound of logits. An encoder's
exit with a classifier of its own has classifier.weight [D, C] and classifier.bias [C], C labels, and before it, where
they are there, pooler.weight [D, D] and pooler.bias [D] with the activation of the model's pooler. How layers run has
its own: loops.py, cycles.py. All float32.
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
from eecompile.schema import CalibrationResult, Name, Sha256, Strict, Task, Text, Thresholds
from eecompile.shapes import ExitShape, HeadShape, exits_fault, gates_of, task_fault, weight_shapes
from eecompile.student.cycles import CycleSpec
from eecompile.student.loops import Loops
from eecompile.student.store import WeightStore, read_header


class ExitSpec(ExitShape):
    """An exit of a student, at the `layer`-th layer that runs; `draft` are its thresholds for drafts of exact mode.

    placement, as in EE-LLM (Chen et al., 2024): "post" reads what the layer gives, "pre" what it is given, that is what
    the layer before it gives. A bundle knows neither: there an exit is called by its `depth`.
    """

    adapter: Literal["norm", "affine", "mlp", "layer", "classifier"] = "norm"
    placement: Literal["pre", "post"] = "post"
    draft: Thresholds | None = None

    @model_validator(mode="after")
    def _draft_is_of_the_gates(self) -> Self:
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
    heads: Annotated[list[HeadShape], Field(max_length=c.MAX_HEADS_OF_EXITS)] = Field(default_factory=list)
    schedule: Loops | None = None
    cycles: Annotated[list[CycleSpec], Field(max_length=c.MAX_EXITS)] = Field(default_factory=list)
    weights: Sha256 | None = None
    calibrations: Annotated[list[CalibrationResult], Field(max_length=256)] = Field(default_factory=list)
    provenance: dict[Name, Text | int | float | bool | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exits_and_heads_fit(self) -> Self:
        if reason := exits_fault(self.exits, self.heads):
            raise ValueError(reason)
        return self

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

    def has(self, layer: int, part: str) -> bool:
        """Whether there is a tensor of this name."""
        return self.store is not None and f"exit.{layer}.{part}" in self.store.tensors

    def gate(self, exit_: ExitSpec, kind: str = "gate") -> dict[str, NDArray[np.float32]] | None:
        """The weights by part of an exit's learned gate, or of its "router" or "predictor"; None without one."""
        sizes = exit_.gate_sizes(0).get(kind)
        if sizes is None:
            return None
        return {p: self.tensor(exit_.layer, f"{kind}.{p}") for p in weight_shapes(*sizes)}

    def head(self, name: str) -> HeadShape:
        """The small head of this name."""
        return next(head for head in self.schema.heads if head.name == name)


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


def check_exits(exits: StudentExits, layers: int, hidden: int, vocab: int) -> None:
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
    for head in exits.schema.heads:
        shapes |= _head_shapes(head, hidden, vocab)
        if outside := [t for t in head.tokens if t >= vocab]:
            raise UsageError(f"the shortlist {head.name} has token {outside[0]} of {vocab}", where=c.EARLY_EXIT)
    if shapes and exits.store is None:
        raise UsageError("the exits have adapters or gates but no weights", where=c.EARLY_EXIT)
    if exits.store is not None:
        exits.store.require(shapes)
        bad = [n for n in shapes if not np.isfinite(exits.store.read(n)).all()]
        if bad:
            raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="fit the exits again")


def check_task(exits: StudentExits, task: Task) -> None:
    """Raise UsageError where the exits have what a model of this task cannot have."""
    if reason := task_fault(exits.schema.exits, exits.schema.heads, task):
        raise UsageError(reason, where=c.EARLY_EXIT, mend=f"gates of a {task}: {', '.join(gates_of(task))}")


def check_plain(exits: StudentExits) -> None:
    """Raise UsageError where layers run otherwise than once in order, or an exit has what only a decoder's can have."""
    placed = [e.layer for e in exits.schema.exits if e.placement == "pre" or e.adapter in ("mlp", "layer")]
    if exits.schema.schedule is not None or exits.schema.cycles or placed:
        raise UsageError(
            "schedules, cyclic gates, modules and placement are for models with a decoder alone", where=c.EARLY_EXIT,
            mend="leave them out",
        )  # fmt: skip


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
    for kind, sizes in e.gate_sizes(hidden).items():
        parts |= {f"{kind}.{part}": shape for part, shape in weight_shapes(*sizes).items()}
    return {f"exit.{e.layer}.{part}": shape for part, shape in parts.items()}


def _head_shapes(head: HeadShape, hidden: int, vocab: int) -> dict[str, tuple[int, ...]]:
    if head.kind == "shortlist":
        return {}
    parts: dict[str, tuple[int, ...]] = {"down": (head.rank, hidden), "up": (vocab, head.rank)}
    if head.bias:
        parts["bias"] = (vocab,)
    return {f"head.{head.name}.{part}": shape for part, shape in parts.items()}
