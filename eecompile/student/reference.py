"""The model in plain numpy, float32, one weight matrix in memory at a time: a second opinion that needs no torch.

A build records what this computes for a short prompt, so that a device without torch or the checkpoint can tell whether
its engines still compute the model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eecompile.student.cycles import Cycle
from eecompile.student.finish import LogitFinish
from eecompile.student.model import DecoderSpec, Norm, bias_name
from eecompile.student.modules import mlp_norm
from eecompile.student.rope import Rope, rope_tables
from eecompile.student.store import WeightStore

Float = NDArray[np.float32]
Real = TypeVar("Real", np.float32, np.float64)


class ReferenceModel:
    """A decoder's forward pass over one prompt, from the checkpoint's own weights."""

    def __init__(self, spec: DecoderSpec, store: WeightStore, cycles: Sequence[Cycle] = ()) -> None:
        self.spec, self.store = spec, store
        self.cycles = {cycle.spec.first: cycle for cycle in cycles}

    def run(self, ids: Sequence[int], at: Sequence[int]) -> tuple[dict[int, Float], Float, Float]:
        """Hidden states [R, D] after each number of layers in `at`, finished rows [R, D], and logits [R, V]."""
        s = self.spec
        x = self._rows(s.names.embed, ids) * np.float32(s.embed_scale)
        if s.names.positions:
            x = x + self._rows(s.names.positions, range(len(ids)))
        boundaries: dict[int, Float] = {}
        layer = 0
        while layer < s.layers:
            cycle = self.cycles.get(layer)
            x = self._layer(x, layer) if cycle is None else self._cycle(x, cycle)
            layer = layer + 1 if cycle is None else cycle.spec.layer
            if layer in at:
                boundaries[layer] = x
        finished = self._norm(x, s.names.norm)
        return boundaries, finished, self.logits(finished)

    def logits(self, finished: Float) -> Float:
        """Logits [R, V] of rows [R, D] that the final norm or an exit has made ready."""
        s = self.spec
        return LogitFinish.of_model(s, self.store)(self._project(finished, s.head_weight))

    def mlp_block(self, x: Float, layer: int) -> Float:
        """The MLP of a layer alone on rows x [R, D], with its norm and residual."""
        n = self.spec.names

        def norm(value: Float, name: str | None) -> Float:
            return value if name is None else self._norm(value, name.format(i=layer))

        update = norm(self._mlp(norm(x, mlp_norm(self.spec)), layer), n.mlp_post_norm)
        return np.asarray(x + update * np.float32(self.spec.residual_scale), np.float32)

    def module(self, x: Float, *, mlp: bool) -> Float:
        """Rows [R, D] of one sequence through its last layer, or that layer's MLP block, and the final norm."""
        last = self.spec.layers - 1
        return self._norm(self.mlp_block(x, last) if mlp else self._layer(x, last), self.spec.names.norm)

    def _cycle(self, x: Float, cycle: Cycle) -> Float:
        """Rows [R, D] through a block that they run again as its gate says, each after those before it are done."""
        layers = range(cycle.spec.first, cycle.spec.layer)
        read = [x.copy() for _ in layers]  # what each layer was given in each row's last run

        def run(rows: Float, start: int) -> Float:
            for given, layer in zip(read, layers, strict=True):
                given[start : start + len(rows)] = rows
                rows = self._layer(given[: start + len(rows)], layer)[start:]
            return np.asarray(rows, np.float32)

        out: Float = run(x, 0).copy()
        for row in range(len(out)):
            ran = 0
            while ran < cycle.spec.repeats and cycle.value(out[row]) < cycle.spec.threshold:
                out[row : row + 1] = run(out[row : row + 1] + cycle.think, row)
                ran += 1
            if ran and row + 1 < len(out):
                out[row + 1 :] = run(x[row + 1 :], row + 1)
        return out

    def _layer(self, x: Float, layer: int) -> Float:
        n, s = self.spec.names, self.spec

        def norm(value: Float, name: str | None) -> Float:
            return value if name is None else self._norm(value, name.format(i=layer))

        normed = norm(x, n.attention_norm)
        after = x + norm(self._attention(normed, layer), n.attention_post_norm) * np.float32(s.residual_scale)
        if not s.parallel:
            normed = norm(after, n.mlp_norm)
        elif n.mlp_norm is not None:
            normed = norm(x, n.mlp_norm)
        update = norm(self._mlp(normed, layer), n.mlp_post_norm) * np.float32(s.residual_scale)
        return np.asarray(after + update, np.float32)

    def _attention(self, x: Float, layer: int) -> Float:
        n, s = self.spec.names, self.spec
        q, k, v = (self._linear(x, name, layer, s.qkv_bias) for name in (n.q, n.k, n.v))
        if s.qk_norm == "whole":
            q, k = self._rms(q, n.q_norm.format(i=layer)), self._rms(k, n.k_norm.format(i=layer))
        q, k, v = (t.reshape(len(x), -1, s.head_dim) for t in (q, k, v))
        if s.qk_norm == "head":
            q, k = self._rms(q, n.q_norm.format(i=layer)), self._rms(k, n.k_norm.format(i=layer))
        rope = s.ropes[layer]
        if rope is not None:
            q, k = _rotate(q, rope), _rotate(k, rope)
        mixed = _attend(q * np.float32(s.scales[layer]), k, v, s.windows[layer], s.softcap)
        return self._linear(mixed.reshape(len(x), -1), n.o, layer, s.o_bias)

    def _mlp(self, x: Float, layer: int) -> Float:
        n, s = self.spec.names, self.spec
        act = ACTIVATIONS[s.activation]
        up = self._linear(x, n.up, layer, s.mlp_bias)
        inner = act(self._linear(x, n.gate, layer, s.mlp_bias)) * up if s.gated else act(up)
        return self._linear(inner, n.down, layer, s.mlp_bias)

    def _linear(self, x: Float, name: str, layer: int, bias: bool) -> Float:
        out = self._project(x, f"{name}.weight".format(i=layer))
        return out + self.store.read(f"{name}.bias".format(i=layer)) if bias else out

    def _norm(self, x: Float, name: str) -> Float:
        s = self.spec
        bias = self.store.read(bias_name(name)) if s.norm_bias else None
        return np.asarray(normalise(x, s.norm, s.norm_eps, self.store.read(name), bias), np.float32)

    def _rms(self, x: Float, name: str) -> Float:
        return np.asarray(normalise(x, "rms", self.spec.norm_eps, self.store.read(name)), np.float32)

    def _project(self, x: Float, name: str) -> Float:
        """x [R, in] times the transpose of the weight [out, in], a chunk of its rows at a time."""
        out = np.empty((len(x), self.store.shape(name)[0]), np.float32)
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


def normalise(x: NDArray[Real], norm: Norm, eps: float, weight: Float, bias: Float | None = None) -> NDArray[Real]:
    """x over its last dimension, in the precision of x: RMS or layer normalisation."""
    if norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
    return np.asarray(x * scale * weight if bias is None else x * scale * weight + bias, x.dtype)


def _rotate(x: Float, rope: Rope) -> Float:
    """x [R, heads, d] turned by its positions 0, 1, .."""
    cos, sin = (table[:, None] for table in rope_tables(rope, x.shape[-1], len(x)))
    turned = rope.rotated(x.shape[-1])
    half = turned // 2
    first, second = (np.s_[..., :turned:2], np.s_[..., 1:turned:2]) if rope.interleaved else (
        np.s_[..., :half], np.s_[..., half:turned]
    )  # fmt: skip
    out: Float = x.copy()
    a, b = x[first], x[second]
    out[first], out[second] = a * cos - b * sin, b * cos + a * sin
    return out


def _attend(q: Float, k: Float, v: Float, window: int | None, softcap: float | None) -> Float:
    """q [R, H, d] (scaled), k and v [R, KV, d] -> [R, H, d], causal, inside the window where there is one."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("rhd,shd->hrs", q, k)
    if softcap is not None:
        scores = _softcap(scores, softcap)
    rows, keys = np.arange(len(q))[:, None], np.arange(len(q))[None, :]
    seen = (keys <= rows) & (keys > rows - (window or len(q)))
    scores = np.where(seen, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hrs,shd->rhd", weights, v), np.float32)


def _softcap(x: Float, most: float) -> Float:
    return np.asarray(np.tanh(x / np.float32(most)) * np.float32(most), np.float32)


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
