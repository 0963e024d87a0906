"""The model in plain numpy, float32, one weight matrix in memory at a time: a second opinion that needs no torch.

A build records what this computes for a short prompt, so that a device without torch or the checkpoint can tell whether
its engines still compute the model.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.student.model import DecoderSpec
from eecompile.student.rope import rope_tables
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]


class ReferenceModel:
    """A decoder's forward pass over one prompt, from the checkpoint's own weights."""

    def __init__(self, spec: DecoderSpec, store: WeightStore) -> None:
        self.spec, self.store = spec, store

    def run(self, ids: Sequence[int], at: Sequence[int]) -> tuple[dict[int, Float], Float, Float]:
        """Hidden states [R, D] after each number of layers in `at`, finished rows [R, D], and logits [R, V]."""
        s = self.spec
        x = self._rows(s.names.embed, ids)
        cos, sin = rope_tables(s.rope, s.head_dim, len(ids))
        boundaries: dict[int, Float] = {}
        for layer in range(s.layers):
            x = self._layer(x, layer, cos, sin)
            if layer + 1 in at:
                boundaries[layer + 1] = x
        finished = self._norm(x, s.names.norm)
        return boundaries, finished, self._project(finished, s.head_weight)

    def _layer(self, x: Float, layer: int, cos: Float, sin: Float) -> Float:
        n, s = self.spec.names, self.spec

        def linear(value: Float, name: str, bias: bool) -> Float:
            out = self._project(value, f"{name.format(i=layer)}.weight")
            return out + self.store.read(f"{name.format(i=layer)}.bias") if bias else out

        normed = self._norm(x, n.attention_norm.format(i=layer))
        q, k, v = (linear(normed, name, s.qkv_bias) for name in (n.q, n.k, n.v))
        q, k, v = (t.reshape(len(x), -1, s.head_dim) for t in (q, k, v))
        if s.qk_norm:
            q, k = self._norm(q, n.q_norm.format(i=layer)), self._norm(k, n.k_norm.format(i=layer))
        mixed = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, s.windows[layer])
        x = x + linear(mixed.reshape(len(x), -1), n.o, s.o_bias)
        normed = self._norm(x, n.mlp_norm.format(i=layer))
        gate = ACTIVATIONS[s.activation](linear(normed, n.gate, s.mlp_bias))
        return x + linear(gate * linear(normed, n.up, s.mlp_bias), n.down, s.mlp_bias)

    def _norm(self, x: Float, name: str) -> Float:
        scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(self.spec.norm_eps))
        return np.asarray(x * scale * self.store.read(name), np.float32)

    def _project(self, x: Float, name: str) -> Float:
        """x [R, in] times the transpose of the weight [out, in], a chunk of its rows at a time."""
        out = np.empty((len(x), self.store.tensors[name].shape[0]), np.float32)
        for start, rows in self.store.chunks(name):
            out[:, start : start + len(rows)] = x @ rows.T
        return out

    def _rows(self, name: str, ids: Sequence[int]) -> Float:
        out = np.empty((len(ids), self.spec.hidden), np.float32)
        wanted = np.asarray(ids)
        for start, rows in self.store.chunks(name):
            here = (wanted >= start) & (wanted < start + len(rows))
            out[here] = rows[wanted[here] - start]
        return out


def _rotate(x: Float, cos: Float, sin: Float) -> Float:
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def _attend(q: Float, k: Float, v: Float, window: int | None) -> Float:
    """q [R, H, d], k and v [R, KV, d] -> [R, H, d], causal, inside the window where there is one."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("rhd,shd->hrs", q, k) / np.sqrt(np.float32(q.shape[-1]))
    rows, keys = np.arange(len(q))[:, None], np.arange(len(q))[None, :]
    seen = (keys <= rows) & (keys > rows - (window or len(q)))
    scores = np.where(seen, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hrs,shd->rhd", weights, v), np.float32)


def _gelu(x: Float) -> Float:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2))), np.float32)


def _gelu_tanh(x: Float) -> Float:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), np.float32)


def _silu(x: Float) -> Float:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -80, None))), np.float32)


ACTIVATIONS: Mapping[str, Callable[[Float], Float]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}
