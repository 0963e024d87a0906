"""Gates that were tuned for a bundle after it was built: a file of weights, and their way into the policy overlay."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from eecompile import contract as c
from eecompile.bundle.manifest import ExitPolicy, GateWeights, Policy
from eecompile.bundle.policy import read_for_change
from eecompile.bundle.ranges import policy_fault
from eecompile.bundle.strict import validation_summary
from eecompile.bundle.write import write_overlay
from eecompile.errors import UsageError
from eecompile.schema import Finite, Layer, Name, Strict, Text, Thresholds


class TunedGate(Strict):
    """The learned gate of the exit after `layer` layers. draft: what it drafts by in exact mode."""

    layer: Layer
    gate: GateWeights
    draft: Thresholds


class TunedGates(Strict):
    """gates.json, as `train policy` writes it. provenance: where they come from; nothing goes by it."""

    kind: Literal["gates"] = "gates"
    exits: Annotated[list[TunedGate], Field(min_length=1, max_length=c.MAX_EXITS)]
    provenance: dict[Name, Text | int | Finite | bool | None] = Field(default_factory=dict)


def read_tuned(path: Path) -> TunedGates:
    """The gates in a file. Raises UsageError where it is none."""
    mend = "give the gates.json that `eecompile train policy` wrote"
    try:
        with open(path, "rb") as file:
            data = file.read(c.MAX_OVERLAY_BYTES + 1)
        if len(data) > c.MAX_OVERLAY_BYTES:
            raise UsageError("too large for a file of gates", where=str(path), mend=mend)
        return TunedGates.model_validate_json(data)
    except OSError as e:
        raise UsageError(f"cannot be read ({e.strerror})", where=str(path), mend=mend) from e
    except ValidationError as e:
        raise UsageError(f"not a file of gates: {validation_summary(e)}", where=str(path), mend=mend) from e


def adopt_gates(bundle: Path, tuned: TunedGates, *, key: Path | None = None) -> Policy:
    """Put the gates into the bundle's policy and return it; the core stays as it is.

    No calibration was measured with them, so that confident mode stays closed until `calibrate` has run again; those of
    the gates before match again when these come back. key: the private key (PEM) of a signed bundle.
    Raises UsageError where the gates do not fit the bundle's exits or the key is missing, IntegrityError where the
    bundle is not intact.
    """
    files = read_for_change(bundle, key)
    found = {one.layer: one for one in tuned.exits}
    layers = [e.layer for e in files.policy.exits]
    if unknown := sorted(set(found) - set(layers)):
        raise UsageError(f"there is no exit after layer {unknown[0]}", where=str(bundle), mend=f"exits are at {layers}")
    exits = [_adopted(e, found.get(e.layer)) for e in files.policy.exits]
    policy = files.policy.model_copy(update={"exits": exits})
    if reason := policy_fault(policy, files.manifest):
        mend = "give gates that were tuned for a bundle of the same student"
        raise UsageError(f"the gates do not fit: {reason}", where=str(bundle), mend=mend)
    return Policy.model_validate(write_overlay(files.path, c.POLICY, policy, key=key))


def _adopted(exit_: ExitPolicy, tuned: TunedGate | None) -> ExitPolicy:
    said = "never in confident mode: gates were tuned since the calibration, run `eecompile calibrate`"
    closed = exit_.model_copy(update={"confident": None, "reason": said})
    return closed if tuned is None else closed.model_copy(update={"gate": tuned.gate, "draft": tuned.draft})
