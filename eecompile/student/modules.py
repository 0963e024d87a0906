"""Exits with a small module of their own, whose tensors are in early_exit.safetensors.

"mlp": the model's MLP block once more, with norm and residual, and a norm (EE-Tuning, Pan et al., 2024, section 3);
"layer": a whole decoder layer and a norm (Balcony, Jamialahmadi et al., 2025), which has keys and values of its own.
Both are of the model's own shape, with the rotation, window and scale of its last layer, whose part they play. Tensors
are "exit.<layer>." and what a layer's weight is called inside the model's layers, and "exit.<layer>.final_norm.weight".
"""

from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.exits import ExitSpec, StudentExits
from eecompile.student.model import DecoderSpec, Shapes, bias_name

MODULES: Final = ("mlp", "layer")


def module_spec(spec: DecoderSpec, layer: int) -> DecoderSpec:
    """The model whose every layer is the module of the exit at `layer`, its final norm the module's."""
    changed: dict[str, Any] = {"positions": None, "norm": f"exit.{layer}.final_norm.weight"}
    for name in fields(spec.names):
        value = getattr(spec.names, name.name)
        if value is not None and "{i}." in value:
            changed[name.name] = f"exit.{layer}." + value.split("{i}.")[1]
    return replace(spec, names=replace(spec.names, **changed), sources={})


def mlp_norm(spec: DecoderSpec) -> str | None:
    """The name of the norm before the MLP: where attention and MLP share one, that."""
    names = spec.names
    return names.attention_norm if spec.parallel and names.mlp_norm is None else names.mlp_norm


def module_shapes(spec: DecoderSpec, exit_: ExitSpec) -> Shapes:
    """Every tensor that the exit's module needs, with its shape; `spec` is the model's."""
    own = module_spec(spec, exit_.layer)
    shapes = own.layer_shapes(0)
    if exit_.adapter == "mlp":
        names = own.names
        parts = [f"{linear}.{part}" for linear in (names.gate, names.up, names.down) for part in ("weight", "bias")]
        norms = [name for name in (mlp_norm(own), names.mlp_post_norm) if name is not None]
        parts += [*norms, *map(bias_name, norms)]
        shapes = {name: shape for name, shape in shapes.items() if name in parts}
    final = {own.names.norm: (spec.hidden,)}
    return shapes | final | ({bias_name(own.names.norm): (spec.hidden,)} if spec.norm_bias else {})


def check_modules(exits: StudentExits, spec: DecoderSpec) -> None:
    """Raise UsageError unless every module has its tensors, finite."""
    for exit_ in exits.schema.exits:
        if exit_.adapter not in MODULES:
            continue
        if exits.store is None:
            raise UsageError("the exits have modules but no weights", where=c.EARLY_EXIT)
        shapes = module_shapes(spec, exit_)
        exits.store.require(shapes)
        bad = [name for name in shapes if not np.isfinite(exits.store.read(name)).all()]
        if bad:
            raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="train the exits again")
