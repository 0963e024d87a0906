"""The exits of a student in torch: the same tensors as early_exit.safetensors, the same arithmetic as the exit graphs.

`read_exits` takes them from a student's directory, `new_exits` makes those that a config asks for, `write_exits` writes
them back. What they compute is what the compiled bundle computes (eecompile/segments/exits.py, heads.py, modules.py).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from eecompile import contract as c
from eecompile.shapes import HeadShape, weight_shapes
from eecompile.student.encoder import EncoderSpec
from eecompile.student.encoder_student import EncoderStudent
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.model import DecoderSpec, bias_name
from eecompile.student.modules import MODULES, mlp_norm, module_shapes, module_spec
from eecompile.student.student import Student
from eecompile_training.backbone import ENCODER_ACTIVATIONS
from eecompile_training.decoder_math import decoder_layer, finish_logits, mlp_block, norm

GATES = ("gate", c.ROUTER, c.PREDICTOR)


class TorchExits(nn.Module):
    """Exits and small heads as parameters, by the names of their tensors. Shapes: B rows of T tokens, D hidden size."""

    def __init__(self, schema: EarlyExit, spec: DecoderSpec | EncoderSpec, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.schema, self.spec = schema, spec
        self._names = sorted(tensors)
        self._parameters_by_place = nn.ParameterList([nn.Parameter(tensors[name].float()) for name in self._names])
        self._places = {name: i for i, name in enumerate(self._names)}

    def tensor(self, name: str) -> Tensor:
        """A parameter by its name in early_exit.safetensors."""
        found: Tensor = self._parameters_by_place[self._places[name]]
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by name."""
        return {name: self.tensor(name) for name in self._names}

    def of(self, exit_: ExitSpec, part: str) -> Tensor:
        """A tensor of an exit, as "adapter.weight"."""
        return self.tensor(f"exit.{exit_.layer}.{part}")

    def ready(self, exit_: ExitSpec, hidden: Tensor, normed: Tensor) -> Tensor:
        """What a head reads [B, T, D]. hidden: the state at the exit [B, T, D]; normed: the same after the model's
        final norm, which a module does not read."""
        if exit_.adapter in MODULES:
            return self._module(exit_, hidden)
        if exit_.adapter == "affine":
            return normed @ self.of(exit_, "adapter.weight") + self.of(exit_, "adapter.bias")
        return normed

    def learned(self, exit_: ExitSpec, normed: Tensor) -> Tensor:
        """The learned gate's logit [B, T] of the state after the model's final norm."""
        return self._mlp(exit_, "gate", normed, torch.tanh)[..., 0]

    def router(self, exit_: ExitSpec, hidden: Tensor) -> Tensor:
        """The router's logits [B, T, C] of the state as it is."""
        return self._mlp(exit_, c.ROUTER, hidden, functional.gelu)

    def predictor(self, exit_: ExitSpec, features: Tensor) -> Tensor:
        """The predictor's logit [B, T] of features [B, T, 3 K] (`predictor_features`)."""
        return self._mlp(exit_, c.PREDICTOR, features, functional.relu)[..., 0]

    def small_logits(self, head: HeadShape, ready: Tensor, full: Tensor, bias: Tensor | None) -> Tensor:
        """Logits [.., V], or [.., its tokens] of a shortlist. full, bias: the model head's [V, D] and [V]."""
        assert isinstance(self.spec, DecoderSpec)
        if head.kind == "shortlist":
            tokens = torch.tensor(head.tokens, device=full.device)
            own = None if bias is None else bias[tokens]
            return finish_logits(self.spec, functional.linear(ready, full[tokens]), own)
        down, up = (self.tensor(f"head.{head.name}.{part}") for part in ("down", "up"))
        added = self.tensor(f"head.{head.name}.bias") if head.bias else None
        return finish_logits(self.spec, functional.linear(functional.linear(ready, down), up, added), bias)

    def class_logits(self, exit_: ExitSpec, rows: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        """An encoder's exit on states [N, D]: logits [N, C] of its classifier, or of the model's `own`."""
        if exit_.adapter != "classifier":
            return own(self.ready(exit_, rows, rows))
        assert isinstance(self.spec, EncoderSpec)
        if f"exit.{exit_.layer}.pooler.weight" in self._places:
            act = ENCODER_ACTIVATIONS[self.spec.pooler or "tanh"]
            rows = act(rows @ self.of(exit_, "pooler.weight") + self.of(exit_, "pooler.bias"))
        return rows @ self.of(exit_, "classifier.weight") + self.of(exit_, "classifier.bias")

    def _mlp(self, exit_: ExitSpec, kind: str, x: Tensor, act: object) -> Tensor:
        assert callable(act)
        if f"exit.{exit_.layer}.{kind}.w1" in self._places:
            x = act(x @ self.of(exit_, f"{kind}.w1") + self.of(exit_, f"{kind}.b1"))
        return x @ self.of(exit_, f"{kind}.w2") + self.of(exit_, f"{kind}.b2")

    def _module(self, exit_: ExitSpec, hidden: Tensor) -> Tensor:
        assert isinstance(self.spec, DecoderSpec)
        spec, last, weights = module_spec(self.spec, exit_.layer), self.spec.layers - 1, self.tensors()
        block = mlp_block if exit_.adapter == "mlp" else decoder_layer
        return norm(spec, weights, block(spec, weights, hidden, last), spec.names.norm)


def predictor_features(
    logits: Tensor, candidates: Tensor | None, last_local: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """SpecEE's features of a predictor (Xu et al., 2025) from a small head's logits [.., W].

    candidates [.., K]: places in the logits, None at the first exit, which chooses them; last_local [.., K]: their
    probabilities at the exit before. Returns features [.., 3 K], candidates, and probabilities among them.
    """
    chosen = logits.topk(c.CANDIDATE_COUNT, dim=-1).indices if candidates is None else candidates
    scores = logits.gather(-1, chosen)
    local = torch.softmax(scores, dim=-1)
    before = torch.zeros_like(local) if last_local is None else last_local
    return torch.cat([scores, local, local - before], -1), chosen, local


def read_exits(student: Student | EncoderStudent) -> TorchExits:
    """The exits that a student has, with their tensors; its heads' too."""
    store, schema = student.exits.store, student.exits.schema
    names = [] if store is None else [n for n in store.tensors if n.startswith(("exit.", "head."))]
    tensors = {name: torch.from_numpy(store.read(name)) for name in names} if store is not None else {}
    return TorchExits(schema, student.spec, tensors)


def new_exits(schema: EarlyExit, student: Student, seed: int = 0) -> TorchExits:
    """Exits as `schema` has them, before any training: affine adapters are the identity, an MLP module is the MLP of
    the layer before it (EE-Tuning's copy), a layer module the last layer, both with the final norm; a low-rank head is
    the best one for the head matrix; gates are random inside and say one half (a router: all alike)."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for exit_ in schema.exits:
        if exit_.adapter == "affine":
            tensors[f"exit.{exit_.layer}.adapter.weight"] = torch.eye(student.spec.hidden)
            tensors[f"exit.{exit_.layer}.adapter.bias"] = torch.zeros(student.spec.hidden)
        elif exit_.adapter in MODULES:
            tensors |= _copied_module(exit_, student)
        for kind, sizes in exit_.gate_sizes(student.spec.hidden).items():
            for part, shape in weight_shapes(*sizes).items():
                values = torch.zeros(shape)
                if part == "w1":
                    values.normal_(std=sizes[0] ** -0.5, generator=generator)
                tensors[f"exit.{exit_.layer}.{kind}.{part}"] = values
    for head in schema.heads:
        tensors |= _low_rank(head, student) if head.kind == "low_rank" else {}
    return TorchExits(schema, student.spec, tensors)


def new_classifier_exits(schema: EarlyExit, student: EncoderStudent) -> TorchExits:
    """An encoder's exits before any training: classifiers, and poolers, are copies of the model's, affine adapters the
    identity."""
    spec, tensors = student.spec, dict[str, Tensor]()
    copied = {"classifier": spec.names.classifier} | ({"pooler": spec.names.pooler} if spec.pooler else {})
    for exit_ in schema.exits:
        prefix = f"exit.{exit_.layer}."
        if exit_.adapter == "affine":
            tensors[f"{prefix}adapter.weight"] = torch.eye(spec.hidden)
            tensors[f"{prefix}adapter.bias"] = torch.zeros(spec.hidden)
        for part, name in copied.items() if exit_.adapter == "classifier" else ():
            weight, bias = (torch.from_numpy(student.store.read(f"{name}.{kind}")) for kind in ("weight", "bias"))
            tensors |= {f"{prefix}{part}.weight": weight.T.contiguous(), f"{prefix}{part}.bias": bias}
    return TorchExits(schema, spec, tensors)


def write_exits(folder: Path, exits: TorchExits, more: Mapping[str, Tensor] | None = None) -> EarlyExit:
    """Write early_exit.json and its tensors, `more` (of cycles or loops) among them; returns the schema as written."""
    tensors = {**exits.tensors(), **(more or {})}
    arrays = {name: t.detach().cpu().float().numpy().astype(np.float32) for name, t in tensors.items()}
    return save_exits(folder, exits.schema, arrays)


def plain_exits(layers: Sequence[int]) -> EarlyExit:
    """Exits after `layers` layers with the model's own norm and head, open where p > 0.9 in exact mode."""
    exits = [ExitSpec(layer=n, adapter="norm", gates=["max_prob"], draft={"max_prob": 0.9}) for n in layers]
    return EarlyExit(exits=exits)


def _copied_module(exit_: ExitSpec, student: Student) -> dict[str, Tensor]:
    """The module's tensors, each read where the model has the like."""
    spec, own = student.spec, module_spec(student.spec, exit_.layer)
    source = exit_.depth - 1 if exit_.adapter == "mlp" else spec.layers - 1
    pairs = {own.names.norm: spec.names.norm, bias_name(own.names.norm): bias_name(spec.names.norm)}
    prefix = f"exit.{exit_.layer}."
    parents = {name.split("{i}.")[0] for name in (spec.names.q, spec.names.up, mlp_norm(spec) or spec.names.up)}
    assert len(parents) == 1
    parent = parents.pop()
    found = {}
    for name in module_shapes(spec, exit_):
        origin = pairs.get(name) or f"{parent}{source}.{name.removeprefix(prefix)}"
        found[name] = torch.from_numpy(student.store.read(origin))
    return found


def _low_rank(head: HeadShape, student: Student) -> dict[str, Tensor]:
    """The head matrix's best approximation of the rank (Eckart and Young)."""
    matrix = torch.from_numpy(student.store.read(student.spec.head_weight))
    _, vectors = torch.linalg.eigh((matrix.T @ matrix).double())
    down = vectors[:, -head.rank :].T.float()
    found = {"down": down.contiguous(), "up": (matrix @ down.T).contiguous()}
    if head.bias:
        found["bias"] = torch.zeros(student.spec.vocab)
    return {f"head.{head.name}.{part}": tensor for part, tensor in found.items()}
