"""Small heads: that their weights are the student's, and that their graphs compute what these weights say."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.runtime import Bundle
from eecompile.shapes import HeadShape
from eecompile.student.student import Student
from eecompile.verify.compare import Comparator, Statistic
from eecompile.verify.report import Check, Figure, at_most
from eecompile.verify.rows import Walker
from eecompile.verify.stored import StoredWeight, graph_tensors, is_rounded, read_tensor

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Logits = Callable[[Float], Float]
# Against float64 on the stored weights [fp32, fp16, and w8a8 and fp8, where they are float16, 5e-7]; int8 and int4
# round activations to 8 bits [mean 0.02].
_EXACT: Mapping[Statistic, float] = {"largest": 1e-5}
TOLERANCE: Mapping[str, Mapping[Statistic, float]] = {
    "fp32": _EXACT, "fp16": _EXACT, "w8a8": _EXACT, "fp8": _EXACT, "int8": {"mean": 0.1}, "int4": {"mean": 0.1},
}  # fmt: skip


def small_head_logits(bundle: Bundle, name: str) -> Logits:
    """Logits of normalised rows [N, D] by the weights that the bundle stores, in float64."""
    parts = {part: weight.read().astype(np.float64) for part, weight in _stored(bundle, name).items()}
    matrices, bias = [m for m in parts.values() if m.ndim == 2], parts.get("bias")
    finish = _finish(bundle, next(head for head in bundle.manifest.heads if head.name == name))

    def project(rows: Float) -> Float:
        x = rows.astype(np.float64)
        for matrix in matrices:
            x = x @ matrix.T
        return np.asarray(finish(x if bias is None else x + bias), np.float32)

    return project


def _finish(bundle: Bundle, head: HeadShape) -> Callable[[Double], Double]:
    """What the full head's graph does to its product, for the tokens of a small one: a small head has to do the same.
    (That the full head does the right thing is for the checks of its logits to say.)"""
    info = bundle.manifest.graphs.head
    model, tensors = graph_tensors(bundle.files.path, info)
    folder = (bundle.files.path / info.path).parent
    after = {node.input[0]: node for node in model.graph.node if node.op_type in ("Mul", "Add", "Tanh")}
    product = next(node for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
    steps, value = list[Callable[[Double], Double]](), product.output[0]
    while (node := after.get(value)) is not None:
        steps.append(_step(node.op_type, read_tensor(tensors[node.input[1]], folder) if len(node.input) > 1 else None,
                           head.tokens))  # fmt: skip
        value = node.output[0]

    def finish(x: Double) -> Double:
        for step in steps:
            x = step(x)
        return x

    return finish


def _step(kind: str, other: Float | None, tokens: Sequence[int]) -> Callable[[Double], Double]:
    if other is None:
        return np.tanh
    value = other.astype(np.float64)
    if kind == "Mul":
        return lambda x: x * value
    bias = value[list(tokens)] if tokens else value
    return lambda x: x + bias


def check_small_heads(
    bundle: Bundle, walker: Walker, rows: Float, student: Student | None, compare: Comparator
) -> list[Check]:
    """One check a head. rows: some normalised ones [N, D]. student: whose weights they should be, where it is at hand
    and has heads of its own."""
    return [_check(bundle, walker, rows, head, student, compare) for head in bundle.manifest.heads]


def _check(
    bundle: Bundle, walker: Walker, rows: Float, head: HeadShape, student: Student | None, compare: Comparator
) -> Check:
    said = walker.heads[head.name](rows, logits=True)
    assert said.logits is not None
    bounds = TOLERANCE[bundle.manifest.precision]
    measured = compare(said.logits.copy(), small_head_logits(bundle, head.name)(rows), bounds)
    tokens = np.array(head.tokens or range(bundle.manifest.model.vocab))[said.logits.argmax(axis=1)]
    wrong = int((said.token != tokens).sum())
    figures: dict[str, Figure] = {"rows": len(rows), "tokens": wrong, **{s: f for s, (f, _) in measured.items()}}
    tolerance = {**{str(s): at_most(bound) for s, bound in bounds.items()}, "tokens": at_most(0)}
    different = _different(bundle, head, student)
    note = f"the graph of head {head.name}{f'; not the student`s: {different}' if different else ''}"
    passed = all(holds for _, holds in measured.values()) and not wrong and not different
    return Check(f"head_{head.name}", passed, figures, tolerance, note)


def _different(bundle: Bundle, head: HeadShape, student: Student | None) -> str:
    """The parts that are not the student's in the bundle's precision; none where the student has no such head."""
    if student is None or head not in student.exits.schema.heads:
        return ""
    wrong = []
    for part, stored in _stored(bundle, head.name).items():
        if part == "rows":
            expected = student.store.read(student.spec.head_weight)[head.tokens]
        else:
            assert student.exits.store is not None
            expected = student.exits.store.read(f"head.{head.name}.{part}")
        precision = bundle.manifest.precision if expected.ndim == 2 else "fp32"
        if not is_rounded(stored, expected, precision)[0]:
            wrong.append(part)
    return ", ".join(wrong)


def _stored(bundle: Bundle, name: str) -> dict[str, StoredWeight]:
    """The head's tensors as its graph has them: rows; or down, up and perhaps a bias."""
    names = [head.name for head in bundle.manifest.heads]
    info = bundle.manifest.graphs.heads[names.index(name)]
    _, tensors = graph_tensors(bundle.files.path, info)
    folder, prefix = (bundle.files.path / info.path).parent, f"head.{name}."
    return {
        part: StoredWeight(folder, tensors[prefix + part], tensors.get(f"{prefix}{part}.scale"), 0,
                           max(tensors[prefix + part].dims), part != "bias")
        for part in ("rows", "down", "up", "bias") if prefix + part in tensors
    }  # fmt: skip
