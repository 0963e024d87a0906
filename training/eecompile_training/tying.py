"""A plain checkpoint becomes a recursive one: layers that are alike share one set of weights.

As relaxed recursive transformers (Bae et al., "Relaxed Recursive Transformers", 2024, sections 2.2 to 2.4): layers
prelude, prelude + 1, .. of the checkpoint, `block` times `loops` of them, become one block. Its layer k is `stepwise`
one of them, spread evenly with the first and the last among them, or their `average` over loops; what loop b's layer
lacks of the layer that it stands for, W - W', is approximated by LoRA from its truncated SVD: B = U S, A = V^T.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.student_output import copy_checkpoint
from eecompile.errors import UsageError
from eecompile.student.exits import EarlyExit, save_exits
from eecompile.student.loops import Loops, factor_name
from eecompile.student.model import DecoderSpec
from eecompile.student.store import INDEX, SINGLE, WeightStore
from eecompile.student.student import Student, open_student

Float = NDArray[np.float32]
Init = Literal["stepwise", "average"]
LAYER_COUNTS: Final = ("num_hidden_layers", "n_layer")
LAYER_LISTS: Final = ("layer_types", "no_rope_layers")


def tie_layers(checkpoint: Path, out: Path, loops: Loops, init: Init) -> Student:
    """Write at `out`, which must not be there, the recursive student that runs as many layers as the checkpoint has.

    Its weights are float32. Raises UsageError where the block does not fit, the checkpoint is recursive already, or the
    layers of a block differ in more than weights (windows, rotation).
    """
    source = open_student(checkpoint)
    _check(source, loops)
    spec = source.spec
    sources = own_sources(loops, spec.layers, init)
    copy_checkpoint(checkpoint, out)
    for file in [*out.glob("*.safetensors"), out / INDEX]:
        file.unlink(missing_ok=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(shrunk_config(config, [s[0] for s in sources]), indent=2) + "\n")
    raw = WeightStore.open(checkpoint).with_prefix(spec.prefix, spec.names.embed)
    save_tensors(out / SINGLE, dict(_tied(spec, raw, sources)))
    save_exits(out, EarlyExit(exits=[]), {})
    tied = open_student(out)
    _check_same_kind(source, tied, sources)
    factors = dict(residual_factors(source, tied, loops))
    save_exits(out, EarlyExit(exits=[], schedule=loops), factors)
    return open_student(out)


def own_sources(loops: Loops, layers: int, init: Init) -> list[list[int]]:
    """For each layer that the student stores, the checkpoint's layers (of `layers`) whose mean it is."""
    block = range(loops.prelude, loops.prelude + loops.block * loops.loops)
    tied = [[n + b * loops.block for b in range(loops.loops)] for n in block[: loops.block]]
    if init == "stepwise":
        at = np.linspace(0, len(block) - 1, loops.block) if loops.block > 1 else np.zeros(1)
        tied = [[block[int(n)]] for n in np.round(at)]
    return [*([n] for n in range(loops.prelude)), *tied, *([n] for n in range(block.stop, layers))]


def truncated_svd(matrix: Float, rank: int) -> tuple[Float, Float]:
    """The best A [rank, in] and B [out, rank] with B A near the matrix [out, in]: A = V^T, B = U S. Where the matrix
    has fewer than `rank` dimensions the rest is zero."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(s))
    a, b = np.zeros((rank, matrix.shape[1]), np.float32), np.zeros((len(matrix), rank), np.float32)
    a[:kept], b[:, :kept] = v[:kept], u[:, :kept] * s[:kept]
    return a, b


def residual_factors(source: Student, tied: Student, loops: Loops) -> Iterator[tuple[str, Float]]:
    """LoRA tensors by name, which bring each loop's projections towards those of the layer they stand for."""
    for layer, own in enumerate(loops.layers(tied.spec.layers)):
        loop = loops.loop(layer)
        for name, role in loops.adapted(tied.spec, own).items():
            assert loop is not None
            wanted = source.store.read(getattr(source.spec.names, role).format(i=layer) + ".weight")
            a, b = truncated_svd(wanted - tied.store.read(f"{name}.weight"), loops.rank)
            yield factor_name(loop, name, "a"), a
            yield factor_name(loop, name, "b"), b


def shrunk_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """config.json of a model that has these layers of the original one."""
    counts = [name for name in LAYER_COUNTS if name in config]
    lists = {name: [config[name][n] for n in kept] for name in LAYER_LISTS if isinstance(config.get(name), list)}
    own = {**config, **dict.fromkeys(counts, len(kept)), **lists}
    for name in ("dtype", "torch_dtype"):
        if name in own:
            own[name] = "float32"
    return own


def layer_stem(spec: DecoderSpec) -> str:
    """What the name of every tensor of a layer begins with, before the layer's number: "model.layers."."""
    return spec.names.q.split("{i}")[0]


def save_tensors(path: Path, tensors: Mapping[str, Float]) -> None:
    """Write a safetensors file that transformers reads."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path, metadata={"format": "pt"})


def _tied(spec: DecoderSpec, raw: WeightStore, sources: list[list[int]]) -> Iterator[tuple[str, Float]]:
    """The student's tensors, in the checkpoint's own form, by name."""
    stem = layer_stem(spec)
    for name in spec.tensors():
        if not name.startswith(stem):
            yield name, raw.read(name)
        elif name.startswith(f"{stem}0."):
            part = name.removeprefix(f"{stem}0.")
            for own, layers in enumerate(sources):
                total = np.sum([raw.read(f"{stem}{n}.{part}").astype(np.float64) for n in layers], axis=0)
                yield f"{stem}{own}.{part}", (total / len(layers)).astype(np.float32)


def _check(source: Student, loops: Loops) -> None:
    where, layers = str(source.path), source.spec.layers
    if source.loops is not None or source.cycles:
        raise UsageError("the checkpoint repeats layers already", where=where, mend="start from a plain one")
    used = loops.prelude + loops.block * loops.loops
    if used > layers:
        what = f"a prelude of {loops.prelude} and {loops.loops} loops of {loops.block} layers are {used} layers"
        raise UsageError(
            f"{what}, the checkpoint has {layers}", where=where, mend="loop less often, or a smaller block"
        )


def _check_same_kind(source: Student, tied: Student, sources: list[list[int]]) -> None:
    """A shared layer has one window, rotation and scale, which have to be those of all that it stands for."""
    for own, layers in enumerate(sources):
        for name in ("windows", "ropes", "scales"):
            here = getattr(tied.spec, name)[own]
            if any(getattr(source.spec, name)[n] != here for n in layers):
                raise UsageError(
                    f"layers {layers} cannot share weights: they differ in {name}", where=str(source.path),
                    mend="let the block be a multiple of the pattern in which layers differ",
                )  # fmt: skip
