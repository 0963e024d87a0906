"""Recursive students: their LoRA in the bundle, and what they are held against, untied copies of the layers."""

import copy
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.factors import uncut_factors
from eecompile.runtime import Bundle
from eecompile.segments.low_rank import as_input
from eecompile.student.loops import Part
from eecompile.student.model import DecoderSpec
from eecompile.student.store import View, WeightStore
from eecompile.student.student import Student
from eecompile.verify.report import Check, at_most

Float = NDArray[np.float32]
PARTS: tuple[Part, Part] = ("a", "b")


def check_loops(bundle: Bundle, student: Student) -> list[Check]:
    """That every loop's LoRA in the bundle is the student's, to the bit; no check where it has none."""
    loops, manifest = student.loops, bundle.manifest
    if loops is None or not loops.rank:
        return []
    factors, expected = loops.factors(student.own_spec, student.exits.store), dict[str, Float]()
    for layer, role in itertools.product(range(student.spec.layers), loops.projections):
        weight = f"{getattr(student.spec.names, role).format(i=layer)}.weight"
        if weight in factors:
            for part, factor in zip(PARTS, factors[weight], strict=True):
                expected[c.low_rank_name(part, layer, role)] = as_input(factor, part)
    stored = uncut_factors(manifest, [bundle.graphs.factors_of(k) for k in range(len(manifest.schedule))])
    wrong = [n for n in {*stored, *expected} if n not in stored or n not in expected]
    wrong += [n for n in expected if n in stored and not np.array_equal(stored[n], expected[n])]
    figures = {"factors": len(expected), "different": len(wrong)}
    told = f"; not so: {', '.join(sorted(wrong)[:3])}" if wrong else ""
    return [Check("loops", not wrong, figures, {"different": at_most(0)}, f"every loop's LoRA is the student's{told}")]


def own_model(student: Student, spec: DecoderSpec, stored: WeightStore) -> tuple[DecoderSpec, WeightStore]:
    """The model that runs on the weights that the bundle stores; `spec` describes those."""
    loops = student.loops
    if loops is None:
        return spec, stored
    factors = loops.factors(student.own_spec, student.exits.store)
    return loops.unrolled(spec), loops.unrolled_store(spec, stored, factors)


def unroll_model(model: Any, student: Student) -> None:
    """Give a Hugging Face model of the checkpoint a copy of a layer for each time that it runs, LoRA merged into it."""
    loops = student.loops
    if loops is None:
        return
    own, order = student.own_spec, loops.layers(student.own_spec.layers)
    path = own.names.q.split(".{i}")[0]
    layers = model.get_submodule(path)
    copies = [copy.deepcopy(layers[i]) for i in order]
    del layers[:]
    layers.extend(copies)
    model.config.num_hidden_layers = len(order)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in order]
    views = student.spec.views()
    for weight in loops.factors(own, student.exits.store):
        _set(model, views.get(weight), weight, student.store)


def _set(model: Any, view: View | None, weight: str, store: WeightStore) -> None:
    """Put a merged weight [out, in] where the model keeps it."""
    import torch

    parameter = model.get_parameter(weight if view is None else view.tensor)
    rows = slice(None) if view is None else [row for run in view.runs for row in run]
    with torch.no_grad():
        target = parameter.T if view is not None and view.transposed else parameter
        target[rows] = torch.from_numpy(store.read(weight))
