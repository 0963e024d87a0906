"""The exit graphs, recomputed in float64: norm, adapter and learned gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle.gates import decode_gate
from eecompile.runtime import Bundle
from eecompile.student.exits import ExitSpec
from eecompile.student.model import Norm, bias_name
from eecompile.student.modules import MODULES, module_shapes, module_spec
from eecompile.student.reference import ReferenceModel, normalise
from eecompile.student.student import Student
from eecompile.verify.compare import Comparator, Statistic
from eecompile.verify.parity import Walks
from eecompile.verify.report import Check, Figure, at_most
from eecompile.verify.stored import check_weights, graph_tensors, read_tensor, stored_module
from eecompile.verify.tolerances import BANDS, CONFIDENCE, EXITS, MODULE_BOUNDS, PARITY, coarsest, computed

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Adapter = tuple[Float, Float]
NORMS: Mapping[str, Norm] = {"RMSNormalization": "rms", "LayerNormalization": "layer"}


@dataclass(frozen=True)
class FinalNorm:
    """A norm's kind, epsilon, weight [D] and bias [D] or None."""

    kind: Norm
    eps: float
    weight: Float
    bias: Float | None


@dataclass(frozen=True)
class ExitMath:
    """An exit's weights: the final norm, affine adapter [D, D] and [D] or None, learned gate by part or None. `source`
    says where they were read. module: what an exit with a module makes of the rows of one sequence, float32. bounds,
    off: of what its graph's rows and its gate may be off.
    """

    norm: FinalNorm
    adapter: Adapter | None
    gate: Mapping[str, Float] | None
    source: str
    module: Callable[[Float], Float] | None = None
    bounds: Mapping[Statistic, float] = field(default_factory=lambda: EXITS)
    off: float = CONFIDENCE

    def __call__(self, sequences: Sequence[Float]) -> tuple[Double, Double]:
        """Rows [R, D] of each sequence -> (exit_hidden [N, D], confidence [N]; ones without a learned gate) of all of
        them, in float64."""
        x = np.concatenate(sequences).astype(np.float64)
        normed = normalise(x, self.norm.kind, self.norm.eps, self.norm.weight, self.norm.bias)
        adapted: Double = normed if self.adapter is None else normed @ self.adapter[0] + self.adapter[1]
        if self.module is not None:
            adapted = np.concatenate([self.module(rows) for rows in sequences]).astype(np.float64)
        if self.gate is None:
            return adapted, np.ones(len(x))
        inner = np.tanh(normed @ self.gate["w1"].astype(np.float64) + self.gate["b1"])
        return adapted, 1 / (1 + np.exp(-(inner @ self.gate["w2"] + self.gate["b2"])[:, 0]))


def exit_math(bundle: Bundle, student: Student | None) -> list[ExitMath | None]:
    """Each exit's weights: norm and adapter from the checkpoint where it has them, otherwise as stored in the bundle;
    the gate from the bundle's policy, which may have replaced the checkpoint's.

    None for an exit with a module and no checkpoint to say what shape it has.
    """
    return [
        None if info.adapter in MODULES and student is None else _as_computed(bundle, _math(bundle, i, student))
        for i, info in enumerate(bundle.manifest.exits)
    ]


def _as_computed(bundle: Bundle, math: ExitMath) -> ExitMath:
    """With the bounds of what the back end computes in, where that is coarser than float32."""
    if computed(bundle.manifest, bundle.backend) == "fp32":
        return math
    precision = coarsest(bundle.manifest, bundle.backend)
    return replace(math, bounds=PARITY[precision].bounds, off=BANDS[precision].probability)


def check_exits(
    maths: Sequence[ExitMath | None], layers: Sequence[int], walks: Sequence[Walks], compare: Comparator
) -> list[Check]:
    """One check an exit: its graph's outputs for the engines' own rows at its boundary."""
    return [_check(math, i, layer, walks, compare) for i, (math, layer) in enumerate(zip(maths, layers, strict=True))]


def _check(math: ExitMath | None, exit_: int, layer: int, walks: Sequence[Walks], compare: Comparator) -> Check:
    if math is None:
        return Check(f"exit_{layer}", True, note="not recomputed: a module needs the checkpoint (--checkpoint)")
    rows = [w.prefill.exits[exit_] for w in walks]
    hidden, confidence = math([w.prefill.hidden[layer] for w in walks])
    measured = compare(np.concatenate([r.hidden for r in rows]), hidden.astype(np.float32), math.bounds)
    off = float(np.abs(np.concatenate([r.confidence for r in rows]) - confidence).max())
    figures: dict[str, Figure] = {
        "rows": len(hidden),
        **{s: figure for s, (figure, _) in measured.items()},
        "confidence": off,
    }
    tolerance: dict[str, str] = {
        **{s: at_most(bound) for s, bound in math.bounds.items()},
        "confidence": at_most(math.off),
    }
    passed = all(holds for _, holds in measured.values()) and off <= math.off
    return Check(f"exit_{layer}", passed, figures, tolerance, f"the exit graph, with weights from {math.source}")


def _math(bundle: Bundle, exit_: int, student: Student | None) -> ExitMath:
    info, chosen = bundle.manifest.exits[exit_], bundle.files.policy.exits[exit_]
    gate = None if chosen.gate is None else decode_gate(chosen.gate, bundle.manifest.model.hidden)
    if student is None:
        return ExitMath(*_stored(bundle, exit_), gate, "the bundle")
    norm, source = _checkpoint_norm(student), "the checkpoint"
    if info.adapter in MODULES:
        bounds = MODULE_BOUNDS[coarsest(bundle.manifest, bundle.backend)]
        return ExitMath(norm, None, gate, "the bundle", _module(bundle, exit_, student), bounds)
    _, adapter = _stored(bundle, exit_)
    fitted = next((e for e in student.exits.schema.exits if e.depth == info.layer), None)
    if info.adapter == "affine" and fitted is not None and fitted.adapter == "affine":
        adapter = _fitted(student, fitted)
    elif info.adapter == "affine":
        source = "the checkpoint, the adapter from the bundle"
    return ExitMath(norm, adapter, gate, source)


def check_modules(bundle: Bundle, student: Student) -> list[Check]:
    """One check an exit with a module: that its stored weights are the student's."""
    checks = []
    for i, exit_ in enumerate(student.exits.schema.exits):
        if exit_.adapter in MODULES and student.exits.store is not None:
            spec = module_spec(student.spec, exit_.layer)
            stored, names = stored_module(bundle, i, spec), list(module_shapes(student.spec, exit_))
            precision, label = bundle.manifest.precision, f"weights exit_{exit_.depth}"
            checks.append(check_weights(stored, names, student.exits.store, {}, precision, label=label))
    return checks


def _module(bundle: Bundle, exit_: int, student: Student) -> Callable[[Float], Float]:
    """The module's arithmetic on the weights that the bundle stores."""
    fitted = next(e for e in student.exits.schema.exits if e.depth == bundle.manifest.exits[exit_].layer)
    spec = module_spec(student.spec, fitted.layer)
    model = ReferenceModel(spec, stored_module(bundle, exit_, spec))
    return partial(model.module, mlp=fitted.adapter == "mlp")


def _fitted(student: Student, exit_: ExitSpec) -> Adapter:
    weight, bias = (student.exits.tensor(exit_.layer, part) for part in ("adapter.weight", "adapter.bias"))
    return weight, bias


def _checkpoint_norm(student: Student) -> FinalNorm:
    spec, name = student.spec, student.spec.names.norm
    bias = student.store.read(bias_name(name)) if spec.norm_bias else None
    return FinalNorm(spec.norm, spec.norm_eps, student.store.read(name), bias)


def _stored(bundle: Bundle, exit_: int) -> tuple[FinalNorm, Adapter | None]:
    """Norm and adapter as the exit's graph has them."""
    info, layer = bundle.manifest.graphs.exits[exit_], bundle.manifest.exits[exit_].layer
    model, tensors = graph_tensors(bundle.files.path, info)
    folder = (bundle.files.path / info.path).parent
    node = next(node for node in model.graph.node if node.op_type in NORMS)
    eps = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")

    def read(name: str) -> Float:
        return read_tensor(tensors[name], folder).astype(np.float32)

    affine = bundle.manifest.exits[exit_].adapter == "affine"
    adapter = (read(f"exit.{layer}.weight"), read(f"exit.{layer}.bias")) if affine else None
    bias = read(node.input[2]) if len(node.input) > 2 else None
    return FinalNorm(NORMS[node.op_type], eps, read(node.input[1]), bias), adapter
