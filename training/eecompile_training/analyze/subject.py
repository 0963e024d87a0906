"""Any causal language model that transformers loads, with the hidden state after each of its layers.

Nothing here knows a family. The layers are the list of modules that the config counts; the final norm is whatever is
given the last layer's output; and what turns a state into logits is the model's own forward with its layers taken out,
so that scales and caps of logits are the model's own. All three are held against the model's logits when it is opened.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from eecompile.errors import UsageError

_LOGITS = 1 << 24  # floats of logits computed at a time
_PROBE = (1, 2, 3, 1)  # token ids that the structure is checked on


@dataclass(frozen=True)
class Walked:
    """A sequence of T tokens. hidden: [T, D] after n layers, by n, before any norm; finished [T, D]: after them all and
    the final norm."""

    hidden: dict[int, Tensor]
    finished: Tensor


class Subject:
    """An open model, in float32. Not thread-safe: hooks keep what its layers give."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model.eval(), name
        self.config = model.config.get_text_config(decoder=True)
        self.layers = _layers(model.base_model, int(self.config.num_hidden_layers), name)
        self._kept: dict[int, Tensor] = {}
        self._wanted: Collection[int] = ()
        for number, layer in enumerate(self.layers, 1):
            layer.register_forward_hook(self._keeper(number))
        self._norm, self._template = self._find_norm()
        self._check()

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab(self) -> int:
        """Logits of a row."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def context(self) -> int:
        """Tokens of a sequence at most; a model without positions has no bound of its own."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 1 << 20)

    @property
    def rows_at_a_time(self) -> int:
        """Rows of logits that memory is bounded to."""
        return max(1, _LOGITS // self.vocab)

    @torch.no_grad()
    def walk(self, ids: Sequence[int], at: Collection[int]) -> Walked:
        """The states of a sequence after `at` layers."""
        self._wanted, self._kept = at, {}
        out = self.model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        kept, self._wanted, self._kept = self._kept, (), {}
        return Walked({n: state[0] for n, state in kept.items()}, out.last_hidden_state[0])

    @torch.no_grad()
    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm of states [N, D]; as they are where the model has none."""
        found: Tensor = hidden if self._norm is None else self._norm(hidden[None])[0]
        return found

    @torch.no_grad()
    def logits(self, ready: Tensor) -> Tensor:
        """Logits [N, V], float32, of states [N, D] that the final norm, or an exit, made ready for the head."""
        prefix = self.model.base_model_prefix
        base = getattr(self.model, prefix)
        given = type(self._template)(**{**self._template, "last_hidden_state": ready[None]})
        setattr(self.model, prefix, _Given(given))
        try:
            out = self.model(input_ids=torch.zeros(1, len(ready), dtype=torch.long), use_cache=False)
        finally:
            setattr(self.model, prefix, base)
        found: Tensor = out.logits[0].float()
        return found

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that the model goes on with, greedily, its end token included."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        plain = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=eos, pad_token_id=0)
        before, self.model.generation_config = self.model.generation_config, plain
        try:
            ids = torch.tensor([list(prompt)])
            out = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            self.model.generation_config = before
        return [int(t) for t in out[0, len(prompt) :]]

    def _keeper(self, number: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if number in self._wanted:
                self._kept[number] = output[0] if isinstance(output, tuple) else output

        return keep

    @torch.no_grad()
    def _find_norm(self) -> tuple[nn.Module | None, Any]:
        """The module that is given what the last layer gives, outermost first; and what the model without head
        returns."""
        inside = {id(m) for layer in self.layers for m in layer.modules()}
        found: list[nn.Module] = []

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            if any(value is self._kept.get(self.depth) for value in (*args, *kwargs.values()) if value is not None):
                found.append(module)

        base = self.model.base_model
        others = [m for m in base.modules() if id(m) not in inside and m is not base and m is not self.layers]
        handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in others]
        self._wanted, self._kept = [self.depth], {}
        try:
            template = base(input_ids=torch.tensor([_PROBE]), use_cache=False)
        finally:
            self._wanted, self._kept = (), {}
            for handle in handles:
                handle.remove()
        return (found[0] if found else None), template

    @torch.no_grad()
    def _check(self) -> None:
        """Raise UsageError unless norm and head of the last layer's output are the model's logits."""
        expected = self.model(input_ids=torch.tensor([_PROBE]), use_cache=False).logits[0].float()
        walked = self.walk(_PROBE, [self.depth])
        found = self.logits(self.norm(walked.hidden[self.depth]))
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            what = "its logits are not its head's answer to the last layer's output"
            raise UsageError(what, where=self.name, mend="only decoders of layers in one list can be analysed")


class _Given(nn.Module):
    """Stands for a model without head, or the decoder inside it, and returns what it was given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    @property
    def decoder(self) -> "_Given":
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def open_model(path: Path) -> Any:
    """The checkpoint at `path` in float32. Raises UsageError where transformers cannot load it."""
    if not (path / "config.json").is_file():
        raise UsageError("there is no checkpoint here", where=str(path), mend="give a Hugging Face directory")
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except (ValueError, OSError, ImportError) as e:
        raise UsageError(f"transformers cannot load it: {str(e).splitlines()[0]}", where=str(path)) from e


def _layers(base: Any, count: int, name: str) -> nn.ModuleList:
    """The outermost list of `count` modules."""
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UsageError(f"there is no list of {count} layers in it", where=name, mend="only plain decoders are analysed")
