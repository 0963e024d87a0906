"""A recursive student in torch: transformers' own model, whose layers run as the schedule says.

A layer that repeats is several modules with the same parameters, so that gradients add up over its runs; each run's
low-rank part is a parametrisation of its own. Names and forms of tensors are those of eecompile.student.loops.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from eecompile.student.loops import Loops, factor_name
from eecompile.student.model import DecoderSpec
from eecompile.student.student import Student, open_student
from eecompile_training.tying import LAYER_LISTS, layer_stem

Float = NDArray[np.float32]


class LowRank(nn.Module):
    """A parametrisation: weight + what each pair (A [rank, in], B [out, rank]) gives for its outputs.

    outputs: where each pair's are in the weight, which is [out, in], or [in, out] where `transposed`.
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, nn.Parameter]], outputs: list[Tensor], transposed: bool) -> None:
        super().__init__()
        self.a = nn.ParameterList([a for a, _ in pairs])
        self.b = nn.ParameterList([b for _, b in pairs])
        self.outputs, self.transposed = outputs, transposed

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its low-rank parts."""
        for a, b, outputs in zip(self.a, self.b, self.outputs, strict=True):
            product = b @ a
            axis, update = (1, product.T) if self.transposed else (0, product)
            weight = weight.index_add(axis, outputs, update)
        return weight


@dataclass
class RecursiveModel:
    """model: transformers' causal LM of as many layers as run. parameters: the stored ones, by checkpoint name.
    factors: LoRA by name in early_exit.safetensors."""

    model: Any
    loops: Loops
    layers: list[nn.Module]
    parameters: Mapping[str, nn.Parameter]
    factors: Mapping[str, nn.Parameter]

    def ends(self) -> list[int]:
        """Layers that have run at the end of each loop."""
        return [self.loops.prelude + (n + 1) * self.loops.block for n in range(self.loops.loops)]

    def trained(self) -> list[nn.Parameter]:
        """Everything that can be trained, each once."""
        return [*self.parameters.values(), *self.factors.values()]

    def tensors(self) -> tuple[dict[str, Float], dict[str, Float]]:
        """The checkpoint's tensors and the factors, by name, float32."""
        both = (self.parameters, self.factors)
        own, factors = ({n: p.detach().float().cpu().numpy() for n, p in some.items()} for some in both)
        return own, factors


def load_recursive(path: Path) -> RecursiveModel:
    """The recursive student at `path`, float32. Raises UsageError as `open_student`, and where it has no schedule."""
    student = open_student(path)
    assert student.loops is not None
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    parameters = {name: _parameter(model, student.own_spec, name) for name in student.own_spec.tensors()}
    order = student.loops.layers(student.own_spec.layers)
    stem = layer_stem(student.own_spec).rstrip(".")
    own = list(model.get_submodule(stem))
    layers = [_same_parameters(own[n], run, model.config) for run, n in enumerate(order)]
    parent, _, name = stem.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers))
    _lengthen(model.config, order)
    factors = {n: nn.Parameter(torch.from_numpy(t)) for n, t in _stored_factors(student)}
    for run, n in enumerate(order):
        _adapt(layers[run], student, n, run, factors)
    return RecursiveModel(model, student.loops, layers, parameters, factors)


def _parameter(model: Any, spec: DecoderSpec, name: str) -> nn.Parameter:
    """The parameter of a checkpoint's name; transformers calls some heads otherwise than their checkpoints do."""
    found: nn.Parameter = model.get_output_embeddings().weight if name == spec.names.head else model.get_parameter(name)
    return found


def _same_parameters(layer: nn.Module, run: int, config: Any) -> nn.Module:
    """A copy of a layer with the very same parameters, which writes keys and values as layer `run`."""
    twin = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    for module in twin.modules():
        if hasattr(module, "layer_idx") and not getattr(config, "scale_attn_by_inverse_layer_idx", False):
            module.layer_idx = run
    return twin


def _lengthen(config: Any, order: list[int]) -> None:
    """Let the config be of the layers that run."""
    for name in LAYER_LISTS:
        if isinstance(getattr(config, name, None), list):
            setattr(config, name, [getattr(config, name)[n] for n in order])
    config.num_hidden_layers = len(order)


def _stored_factors(student: Student) -> Iterator[tuple[str, Float]]:
    assert student.loops is not None
    for name in student.loops.factor_shapes(student.own_spec):
        assert student.exits.store is not None
        yield name, student.exits.store.read(name)


def _adapt(layer: nn.Module, student: Student, own: int, run: int, factors: Mapping[str, nn.Parameter]) -> None:
    """Add the loop's low-rank parts to the weights of a layer that runs as `run`."""
    loops, spec = student.loops, student.own_spec
    assert loops is not None
    loop, by_tensor = loops.loop(run), dict[str, list[str]]()
    for projection in loops.adapted(spec, own) if loop is not None else ():
        by_tensor.setdefault(_place(spec, f"{projection}.weight")[0], []).append(projection)
    for tensor, projections in by_tensor.items():
        assert loop is not None
        pairs = [(factors[factor_name(loop, p, "a")], factors[factor_name(loop, p, "b")]) for p in projections]
        places = [_place(spec, f"{p}.weight") for p in projections]
        inside = tensor.removeprefix(f"{layer_stem(spec)}{own}.")
        module = layer.get_submodule(inside.rpartition(".")[0])
        parametrize.register_parametrization(module, "weight", LowRank(pairs, [p[1] for p in places], places[0][2]))


def _place(spec: DecoderSpec, name: str) -> tuple[str, Tensor, bool]:
    """The checkpoint's tensor that holds a weight, where in it the outputs are, and whether it is [in, out]."""
    view = spec.views().get(name)
    if view is None:
        return name, torch.arange(spec.shapes()[name][0]), False
    return view.tensor, torch.cat([torch.arange(run.start, run.stop) for run in view.runs]), view.transposed
