"""A smaller student of a Hugging Face decoder: some of its layers, or all of them with fewer MLP units and heads."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from eecompile.errors import UsageError
from eecompile.student.families import spec_from_config
from eecompile.student.model import DecoderSpec
from eecompile_training.data import Rows
from eecompile_training.distill_config import LayersStudent, PrunedStudent, SameStudent


def new_student(config: SameStudent | LayersStudent | PrunedStudent, model: Any, rows: Rows) -> Any:
    """The student that a config asks for, of a transformers model, which is left as it is. rows: to measure
    activations on. Raises UsageError for layers or widths that the model does not have."""
    spec = spec_from_config(model.config.to_dict())
    if isinstance(config, LayersStudent):
        return select_layers(model, spec, chosen_layers(config, spec.layers))
    if isinstance(config, PrunedStudent):
        return prune_width(config, model, spec, rows)
    return copy.deepcopy(model)


def chosen_layers(config: LayersStudent, total: int) -> list[int]:
    """The layers to keep, from 1. uniform: spread evenly, the first and the last among them; last: the deepest; skip:
    every so-many-th from the first on."""
    if config.keep is not None:
        kept = config.keep
    else:
        count = config.count or 0
        if not 1 <= count <= total:
            raise UsageError(f"{count} layers of {total}", where="student.count", mend=f"1 to {total}")
        evenly = [round(float(n)) for n in np.linspace(1, total, count)]
        kept = {
            "uniform": evenly, "last": list(range(total - count + 1, total + 1)),
            "skip": [1 + i * (total // count) for i in range(count)],
        }[config.map]  # fmt: skip
    if kept != sorted(set(kept)) or kept[-1] > total:
        mend = f"rising numbers from 1 to {total}"
        raise UsageError(f"{kept} are not layers of the model", where="student.keep", mend=mend)
    return kept


def select_layers(model: Any, spec: DecoderSpec, keep: Sequence[int]) -> Any:
    """A model of the layers `keep` (from 1) of `model`, in order."""
    config = copy.deepcopy(model.config)
    for key, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == spec.layers:
            setattr(config, key, [value[n - 1] for n in keep])
    config.num_hidden_layers = len(keep)
    parent = spec.names.q.split("{i}")[0]
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(parent):
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(parent).partition(".")
        if int(number) + 1 in keep:
            state[f"{parent}{keep.index(int(number) + 1)}.{rest}"] = tensor
    return _built(model, config, state)


def prune_width(config: PrunedStudent, model: Any, spec: DecoderSpec, rows: Rows) -> Any:
    """A model with the MLP units and groups of heads of `model` that weigh most, the same number in every layer.

    A unit's weight is the norm of its rows and column, or the mean size of what it gives times the norm of its column;
    that of a group of heads is the sum over its columns. Raises UsageError for families with fused matrices.
    """
    n = spec.names
    fused = {f"{name}.weight" for name in (n.q, n.k, n.v, n.o, n.gate, n.up, n.down)} & set(spec.sources)
    if fused or spec.qk_norm == "whole":
        mend = "select layers instead (student.kind: layers)"
        raise UsageError(f"{spec.family} keeps its matrices fused and is not pruned", where="student", mend=mend)
    units, groups = config.intermediate or spec.intermediate, config.kv_heads or spec.kv_heads
    if not (1 <= units <= spec.intermediate and 1 <= groups <= spec.kv_heads):
        mend = f"at most {spec.intermediate} units and {spec.kv_heads} groups of heads"
        raise UsageError(f"{units} units and {groups} groups of heads", where="student", mend=mend)
    sizes = _activations(config, model, spec, rows) if config.by == "activation" else None
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in range(spec.layers):
        _prune_units(state, spec, layer, units, sizes)
        _prune_heads(state, spec, layer, groups, sizes)
    return _built(model, _narrower(model.config, spec, units, groups), state)


def _narrower(config: Any, spec: DecoderSpec, units: int, groups: int) -> Any:
    config = copy.deepcopy(config)
    config.head_dim = spec.head_dim
    config.num_attention_heads = groups * (spec.heads // spec.kv_heads)
    config.num_key_value_heads = groups
    config.intermediate_size = units
    try:
        config.validate()
    except StrictDataclassError as e:
        mend = "choose kv_heads so that the heads that are left divide the hidden size"
        raise UsageError(
            f"transformers takes no such model ({e.__cause__})", where="student.kv_heads", mend=mend
        ) from e
    return config


def _prune_units(
    state: dict[str, Tensor], spec: DecoderSpec, layer: int, count: int, sizes: dict[str, Tensor] | None
) -> None:
    n = spec.names
    down, inner = n.down.format(i=layer), [n.up.format(i=layer)]
    inner += [n.gate.format(i=layer)] if spec.gated else []
    column = state[f"{down}.weight"].norm(dim=0)
    if sizes is not None:
        weight = sizes[down] * column
    else:
        weight = torch.stack([column, *[state[f"{name}.weight"].norm(dim=1) for name in inner]]).square().sum(0)
    keep = weight.topk(count).indices.sort().values
    _keep_columns(state, down, keep)
    for name in inner:
        _keep_rows(state, name, keep)


def _prune_heads(
    state: dict[str, Tensor], spec: DecoderSpec, layer: int, groups: int, sizes: dict[str, Tensor] | None
) -> None:
    n, group, d = spec.names, spec.heads // spec.kv_heads, spec.head_dim
    out, query, inner = n.o.format(i=layer), n.q.format(i=layer), [name.format(i=layer) for name in (n.k, n.v)]
    column = state[f"{out}.weight"].norm(dim=0)
    weight = sizes[out] * column if sizes is not None else column.square()
    keep = weight.view(spec.kv_heads, -1).sum(1).topk(groups).indices.sort().values
    wide, narrow = (torch.arange(spec.kv_heads * width).view(spec.kv_heads, -1)[keep].flatten()
                    for width in (group * d, d))  # fmt: skip
    _keep_columns(state, out, wide)
    _keep_rows(state, query, wide)
    for name in inner:
        _keep_rows(state, name, narrow)


def _keep_rows(state: dict[str, Tensor], name: str, keep: Tensor) -> None:
    for part in ("weight", "bias"):
        if f"{name}.{part}" in state:
            state[f"{name}.{part}"] = state[f"{name}.{part}"][keep]


def _keep_columns(state: dict[str, Tensor], name: str, keep: Tensor) -> None:
    state[f"{name}.weight"] = state[f"{name}.weight"][:, keep]


def _activations(config: PrunedStudent, model: Any, spec: DecoderSpec, rows: Rows) -> dict[str, Tensor]:
    """The mean size of each input of the projections out of MLP and attention, by their names."""
    sums: dict[str, Tensor] = {}
    names = [name.format(i=i) for i in range(spec.layers) for name in (spec.names.down, spec.names.o)]

    def watch(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = args[0].detach().abs()[mask].sum(0)
            sums[name] = sums.get(name, torch.zeros_like(found)) + found

        return model.get_submodule(name).register_forward_pre_hook(add)

    handles = [watch(name) for name in names]
    try:
        with torch.no_grad():
            for i in range(min(config.rows, len(rows))):
                batch = rows.batch([i])
                mask = batch.mask
                model.base_model(input_ids=batch.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _built(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    new = type(model)(config).to(torch.float32)
    new.load_state_dict(state)
    new.generation_config = model.generation_config
    return new
