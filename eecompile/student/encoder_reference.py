"""An encoder in plain numpy, float32, one weight matrix in memory at a time: a second opinion that needs no torch.

A build records what this computes for one text, so that a device without torch or the checkpoint can tell whether its
engines still compute the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eecompile.student.encoder import EncoderActivation, EncoderSpec
from eecompile.student.encoder_student import EncoderStudent
from eecompile.student.reference import ACTIVATIONS
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
_ACTIVATIONS: Mapping[EncoderActivation, Callable[[Float], Float]] = {
    **{name: ACTIVATIONS[name] for name in ("gelu", "gelu_tanh", "relu", "silu")}, "tanh": np.tanh,
}  # fmt: skip


@dataclass(frozen=True)
class EncoderRows:
    """What the model makes of one text of n tokens: `boundaries` [n, D] after each number of layers, embedding (0)
    included, and logits [n, C], or [1, C] where the text has one answer."""

    boundaries: list[Float]
    logits: Float


class EncoderReference:
    """An encoder's forward pass over one text without padding, from the checkpoint's own weights."""

    def __init__(self, spec: EncoderSpec, store: WeightStore) -> None:
        self.spec, self.store = spec, store

    def run(self, ids: Sequence[int], types: Sequence[int] | None = None) -> EncoderRows:
        """The text's hidden states and logits. types: of the tokens (None: all 0)."""
        s, n = self.spec, self.spec.names
        tables = [(n.words, list(ids)), (n.positions, self._positions(ids))]
        if s.types:
            tables.append((n.types, list(types) if types is not None else [0] * len(ids)))
        x = self._norm(np.sum([self._rows(f"{name}.weight", rows) for name, rows in tables], axis=0), n.embed_norm)
        boundaries = [x]
        for layer in range(s.layers):
            x = self._layer(x, layer)
            boundaries.append(x)
        rows = x if s.per_token else x[:1]
        if s.pooler is not None:
            rows = _ACTIVATIONS[s.pooler](self._linear(rows, n.pooler))
        return EncoderRows(boundaries, self._linear(rows, n.classifier))

    def _layer(self, x: Float, layer: int) -> Float:
        n, s = self.spec.names, self.spec
        q, k, v = (self._linear(x, name.format(i=layer)).reshape(len(x), s.heads, -1) for name in (n.q, n.k, n.v))
        scores = np.einsum("rhd,shd->hrs", q, k) / np.sqrt(np.float32(s.head_dim))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hrs,shd->rhd", weights, v).reshape(len(x), -1)
        x = self._norm(x + self._linear(mixed, n.o.format(i=layer)), n.attention_norm.format(i=layer))
        inner = _ACTIVATIONS[s.activation](self._linear(x, n.up.format(i=layer)))
        return self._norm(x + self._linear(inner, n.down.format(i=layer)), n.mlp_norm.format(i=layer))

    def _positions(self, ids: Sequence[int]) -> list[int]:
        """RoBERTa counts its tokens from padding + 1 on, and leaves the padding id itself where padding is."""
        padding, found, count = self.spec.padding, list[int](), 0
        for token in ids:
            count += padding is None or token != padding
            first = 0 if padding is None else padding + 1
            found.append(padding if padding is not None and token == padding else first + count - 1)
        return found

    def _norm(self, x: Float, name: str) -> Float:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + np.float32(self.spec.norm_eps))
        return np.asarray(
            centred * scale * self.store.read(f"{name}.weight") + self.store.read(f"{name}.bias"), np.float32
        )

    def _linear(self, x: Float, name: str) -> Float:
        """x [R, in] times the transpose of the weight [out, in], a chunk of its rows at a time, plus the bias."""
        out = np.empty((len(x), self.store.tensors[f"{name}.weight"].shape[0]), np.float32)
        for start, rows in self.store.chunks(f"{name}.weight"):
            out[:, start : start + len(rows)] = x @ rows.T
        return np.asarray(out + self.store.read(f"{name}.bias"), np.float32)

    def _rows(self, name: str, wanted: Sequence[int]) -> Float:
        out, at = np.empty((len(wanted), self.spec.hidden), np.float32), np.asarray(wanted)
        for start, rows in self.store.chunks(name):
            here = (at >= start) & (at < start + len(rows))
            out[here] = rows[at[here] - start]
        return out


def record_reference(student: EncoderStudent, folder: Path, count: int) -> None:
    """Write a made-up text of `count` tokens and what the float32 model makes of it: hidden state at each exit and
    after the last layer, and logits."""
    spec = student.spec
    ids = (np.arange(count, dtype=np.int64) * 7919 + 11) % spec.vocab
    rows = EncoderReference(spec, student.store).run(ids.tolist())
    folder.mkdir()
    at = [e.layer for e in student.exits.schema.exits]
    arrays = {f"hidden_{n}": rows.boundaries[n] for n in at}
    np.save(folder / "token_ids.npy", ids)
    for name, array in (arrays | {"finished": rows.boundaries[-1], "logits": rows.logits}).items():
        np.save(folder / f"{name}.npy", array)
