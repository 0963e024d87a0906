"""An encoder-decoder in plain numpy, float32, as reference.py has decoders: a second opinion that needs no torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.student.cycles import Cycle
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.model import DecoderSpec
from eecompile.student.reference import Float, ReferenceModel
from eecompile.student.store import WeightStore


def reference_model(
    spec: DecoderSpec, store: WeightStore, source: Sequence[int] | None, cycles: Sequence[Cycle] = ()
) -> ReferenceModel:
    """The numpy model of either kind. source: an encoder-decoder's, whose encoder runs here. cycles: a decoder's."""
    if isinstance(spec, EncoderDecoderSpec):
        assert source is not None
        return EncoderDecoderReference(spec, store, source)
    return ReferenceModel(spec, store, cycles)


class EncoderDecoderReference(ReferenceModel):
    """The decoder's forward pass over one target, given one source."""

    def __init__(self, spec: EncoderDecoderSpec, store: WeightStore, source: Sequence[int]) -> None:
        super().__init__(spec, store)
        self.cross, self.relative = spec.cross, spec.relative
        self._encoder = ReferenceModel(spec.encoder, store)
        self._encoded = self._encode(source)

    def _encode(self, source: Sequence[int]) -> Float:
        """The encoder's output [E, D]."""
        e, n = self._encoder, self._encoder.spec.names
        x = e._rows(n.embed, source)
        bias = self._bias(len(source), self.cross.encoder_bias, both=True)
        for layer in range(e.spec.layers):
            normed = e._norm(x, (n.attention_norm or "").format(i=layer))
            x = x + e._linear(self._mix(normed, normed, (n.q, n.k, n.v), layer, bias), n.o, layer, False)
            x = x + e._mlp(e._norm(x, (n.mlp_norm or "").format(i=layer)), layer)
        return e._norm(x, n.norm)

    def _layer(self, x: Float, layer: int) -> Float:
        n, cross = self.spec.names, self.cross
        normed = self._norm(x, (n.attention_norm or "").format(i=layer))
        bias = self._bias(len(x), cross.bias, both=False)
        x = x + self._linear(self._mix(normed, normed, (n.q, n.k, n.v), layer, bias), n.o, layer, False)
        normed = self._norm(x, cross.norm.format(i=layer))
        x = x + self._linear(
            self._mix(normed, self._encoded, (cross.q, cross.k, cross.v), layer), cross.o, layer, False
        )
        return x + self._mlp(self._norm(x, (n.mlp_norm or "").format(i=layer)), layer)

    def _mix(self, x: Float, seen: Float, names: tuple[str, str, str], layer: int, bias: Float | None = None) -> Float:
        """What the heads of rows x [R, D] gather from rows `seen` [S, D]: [R, H d]. bias: [H, R, S]."""
        inputs = zip(names, (x, seen, seen), strict=True)
        q, k, v = (self._linear(rows, n, layer, False).reshape(len(rows), -1, self.spec.head_dim) for n, rows in inputs)
        scores = np.einsum("rhd,shd->hrs", q, k)
        scores = scores if bias is None else scores + bias
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(np.einsum("hrs,shd->rhd", weights, v).reshape(len(x), -1), np.float32)

    def _bias(self, rows: int, name: str, *, both: bool) -> Float:
        """The bias [H, R, R] of a stack's table; keys that a row does not see have minus infinity."""
        relative: NDArray[np.int64] = np.arange(rows)[None, :] - np.arange(rows)[:, None]
        near = np.clip(relative, -self.relative.distance, self.relative.distance) + self.relative.distance
        bias = self.store.read(name)[self.relative.buckets(both=both)[near]].transpose(2, 0, 1)
        return np.asarray(np.where(both | (relative <= 0), bias, -np.inf), np.float32)
