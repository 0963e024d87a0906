"""A Hugging Face model with its hidden states at chosen layers, and as a student's directory: causal language models
and encoders with a classifier.

Works for every family that eecompile compiles: the family's description says where layers, final norm and head are.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.utils.logging import disable_progress_bar

from eecompile.runtime.text import TextCodec
from eecompile.student.encoder import EncoderSpec
from eecompile.student.families import encoder_from_config, spec_from_config
from eecompile.student.model import DecoderSpec
from eecompile.student.student import read_config, tokenizer_files
from eecompile_training.decoder_math import ACTIVATIONS, finish_logits

ENCODER_ACTIVATIONS = {**ACTIVATIONS, "tanh": torch.tanh}


@dataclass(frozen=True)
class States:
    """What a model makes of B rows of T tokens. hidden: [B, T, D] after n layers, by n, before any norm; finished:
    [B, T, D] after the last layer and the final norm. attentions: [B, H, T, T] a layer where asked for."""

    hidden: dict[int, Tensor]
    finished: Tensor
    attentions: tuple[Tensor, ...] = ()


class Watched(nn.Module):
    """A model whose layers tell what they give. Rows are whole sequences, padded on the right.

    detach_after: layers after so many get no gradient, nor do those before them get one from there (None: all do).
    """

    def __init__(self, model: Any, layers: str, *, detach_after: int | None = None) -> None:
        super().__init__()
        self.model, self.detach_after, self._path = model, detach_after, layers
        self._wanted: Collection[int] = ()
        self._kept: dict[int, Tensor] = {}
        self._dropped: Tensor | None = None
        self._hooks: list[RemovableHandle] = []
        self.watch()

    @property
    def layers(self) -> nn.ModuleList:
        """The model's layers."""
        found = self.model.get_submodule(self._path)
        assert isinstance(found, nn.ModuleList)
        return found

    def watch(self) -> None:
        """Listen to the layers behind every hook that they have by now: FSDP's sees a state before it is detached."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            layer.register_forward_hook(partial(self._after, number), with_kwargs=True)
            for number, layer in enumerate(self.layers, 1)
        ]

    def run(self, at: Collection[int], dropped: Tensor | None, attentions: bool, **inputs: Any) -> States:
        """The states of `inputs` after `at` layers. dropped: bool [L, B], the layers that a row skips (its state goes
        through as it is). attentions: only of a model that was opened for eager attention."""
        self._wanted, self._kept, self._dropped = at, {}, dropped
        out = self.model.base_model(**inputs, output_attentions=attentions)
        kept, self._wanted, self._kept = self._kept, (), {}
        maps = tuple(out.attentions or ()) if attentions else ()
        for layer, found in zip(self.layers, maps, strict=False):
            if isinstance(layer, FSDPModule) and found.requires_grad:  # FSDP knows of gradients by states alone
                found.register_hook(partial(_unshard, layer))
        return States(kept, out.last_hidden_state, maps)

    def _after(self, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Hook on the `number`-th layer. Runs again where a checkpoint recomputes, when nothing is wanted."""
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if self._dropped is not None:
            given = args[0] if args else kwargs["hidden_states"]
            hidden = torch.where(self._dropped[number - 1][:, None, None], given, hidden)
        if number in self._wanted:
            self._kept[number] = hidden
        if number == self.detach_after:
            hidden = hidden.detach()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _unshard(layer: FSDPModule, gradient: Tensor) -> None:
    layer.unshard()


class Backbone(Watched):
    """A causal language model that tells what it has after `at` layers."""

    def __init__(self, model: Any, spec: DecoderSpec, *, detach_after: int | None = None) -> None:
        super().__init__(model, spec.names.q.split(".{i}")[0], detach_after=detach_after)
        self.spec = spec

    @property
    def head(self) -> nn.Linear:
        """The LM head; its weight [V, D] may be the embeddings'."""
        found = self.model.get_output_embeddings()
        assert isinstance(found, nn.Linear)
        return found

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm of hidden [.., D]."""
        found: Tensor = self.model.get_submodule(self.spec.names.norm.removesuffix(".weight"))(hidden)
        return found

    def logits(self, ready: Tensor) -> Tensor:
        """Logits [.., V] of states [.., D] that the final norm or an exit made ready."""
        return head_logits(self.spec, ready, self.head.weight, self.head.bias)

    def forward(
        self, ids: Tensor, at: Collection[int] = (), *, dropped: Tensor | None = None, attentions: bool = False
    ) -> States:
        """The states of rows ids [B, T], as `run`."""
        return self.run(at, dropped, attentions, input_ids=ids, use_cache=False)


def head_logits(spec: DecoderSpec, ready: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits [.., V] of states [.., D] that are ready for the head, with the head's weight [V, D] and bias [V]."""
    return finish_logits(spec, nn.functional.linear(ready, weight), bias)


def open_backbone(path: Path, *, eager: bool = False, detach_after: int | None = None) -> Backbone:
    """The checkpoint at `path` in float32. eager: with the attention that can tell its maps, not transformers' choice.

    Raises UsageError for a family that eecompile does not compile.
    """
    spec = spec_from_config(read_config(path))
    disable_progress_bar()
    attention = "eager" if eager else None
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
    return Backbone(model, spec, detach_after=detach_after)


class EncoderBackbone(Watched):
    """An encoder with a classifier that tells what it has after `at` layers; its states are normalised ones."""

    def __init__(self, model: Any, spec: EncoderSpec) -> None:
        super().__init__(model, spec.names.q.split(".{i}")[0])
        self.spec = spec

    def forward(
        self, ids: Tensor, mask: Tensor, types: Tensor, at: Collection[int] = (), *, dropped: Tensor | None = None
    ) -> States:
        """The states of rows ids [B, T], as `run`. mask: what is no padding; types: the tokens' kinds."""
        kinds = {"token_type_ids": types} if self.spec.types else {}
        return self.run(at, dropped, False, input_ids=ids, attention_mask=mask.long(), **kinds)

    def logits(self, rows: Tensor) -> Tensor:
        """The model's own pooler and classifier on states [N, D]: of tokens, or the first of texts. [N, C]."""
        n = self.spec.names
        if self.spec.pooler is not None:
            rows = ENCODER_ACTIVATIONS[self.spec.pooler](self.model.get_submodule(n.pooler)(rows))
        found: Tensor = self.model.get_submodule(n.classifier)(rows)
        return found


def open_encoder_backbone(path: Path) -> EncoderBackbone:
    """The encoder at `path` in float32. Raises UsageError for one that eecompile does not compile."""
    spec = encoder_from_config(read_config(path))
    disable_progress_bar()
    kind = AutoModelForTokenClassification if spec.per_token else AutoModelForSequenceClassification
    return EncoderBackbone(kind.from_pretrained(path, dtype=torch.float32), spec)


def codec_of(path: Path) -> TextCodec | None:
    """The tokenizer beside a checkpoint; None without one."""
    return TextCodec(path) if tokenizer_files(path) else None


def save_backbone(model: Any, source: Path, folder: Path) -> None:
    """Write a Hugging Face model into the new directory `folder`, with the tokenizer of the checkpoint `source`."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    for file in tokenizer_files(source):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
