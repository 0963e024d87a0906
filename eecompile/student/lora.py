"""Merging a LoRA adapter, as the peft library saves it, into its checkpoint: W + scale B A, without torch.

An adapter is a few MB where a tuned checkpoint is as large as the model, so small trained parts travel like this. What
early_exit.json says beside the adapter comes along. (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models".)
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.store import INDEX, SINGLE, WeightStore, read_header
from eecompile.student.writing import new_checkpoint, write_safetensors

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_CHUNK: Final = 16 << 20


class _Adapter(BaseModel):
    """What adapter_config.json says that a merge goes by; peft writes more, which says how it was trained."""

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1, le=c.MAX_HIDDEN)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    use_rslora: bool = False
    use_dora: Literal[False] = False
    bias: Literal["none"] = "none"
    fan_in_fan_out: bool = False
    modules_to_save: Annotated[list[str], Field(max_length=0)] | None = None
    rank_pattern: Annotated[dict[str, int], Field(max_length=0)] = Field(default_factory=dict)
    alpha_pattern: Annotated[dict[str, float], Field(max_length=0)] = Field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


@dataclass(frozen=True)
class _Delta:
    """What is added to a weight: left [N, r] times right [r, M]."""

    left: NDArray[np.float32]
    right: NDArray[np.float32]


def merge_lora(
    checkpoint: Path, adapter: Path, out: Path, *, progress: Callable[[str], None] = lambda stage: None
) -> list[str]:
    """Write at `out` the checkpoint with the adapter merged into its weights; returns the names of those.

    Merged weights are float32, all others stay as they are stored. Raises UsageError for an adapter of another model,
    one that is more than LoRA (DoRA, biases, whole modules), and an `out` that holds something.
    """
    store, deltas = WeightStore.open(checkpoint), _deltas(adapter)
    for name, delta in deltas.items():
        _check(store, name, delta, adapter)
    with new_checkpoint(out) as folder:
        for file in sorted(checkpoint.iterdir()):
            if file.is_file() and file.suffix in (".json", ".model", ".txt", ".jinja") and file.name != INDEX:
                shutil.copyfile(file, folder / file.name)
        for name in (c.EARLY_EXIT, c.EARLY_EXIT_WEIGHTS):
            if (adapter / c.EARLY_EXIT).exists():
                (folder / name).unlink(missing_ok=True)
            if (adapter / name).exists():
                shutil.copyfile(adapter / name, folder / name)
        tensors = {n: ("F32" if n in deltas else t.dtype, t.shape) for n, t in store.tensors.items()}
        write_safetensors(folder / SINGLE, tensors, _data(store, deltas, progress))
    return sorted(deltas)


def _data(store: WeightStore, deltas: dict[str, _Delta], progress: Callable[[str], None]) -> Iterator[bytes]:
    for number, (name, location) in enumerate(store.tensors.items(), 1):
        progress(f"weight {number} of {len(store.tensors)}")
        if name in deltas:
            delta = deltas[name]
            for start, rows in store.chunks(name):
                yield (rows + delta.left[start : start + len(rows)] @ delta.right).astype("<f4").tobytes()
            continue
        with open(location.file, "rb") as file:
            file.seek(location.offset)
            for start in range(0, location.bytes, _CHUNK):
                yield file.read(min(_CHUNK, location.bytes - start))


def _deltas(adapter: Path) -> dict[str, _Delta]:
    """What the adapter adds, by the name of the weight."""
    config, header = _config(adapter / CONFIG), read_header(adapter / WEIGHTS)
    store, found = WeightStore(adapter, header), {}
    for name in header:
        if ".lora_B." in name:
            continue
        module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        other = name.replace(".lora_A.", ".lora_B.")
        if not name.startswith(_PREFIX) or not name.endswith(".lora_A.weight") or other not in header:
            raise UsageError(f"{name} is not one half of a LoRA pair", where=str(adapter / WEIGHTS))
        right, left = store.read(name), store.read(other) * np.float32(config.scale)
        if right.shape[0] != config.r or left.shape[1:] != (config.r,):
            raise UsageError(f"{name} is not of rank {config.r}", where=str(adapter / WEIGHTS))
        found[f"{module}.weight"] = _Delta(right.T, left.T) if config.fan_in_fan_out else _Delta(left, right)
    return found


def _config(path: Path) -> _Adapter:
    mend = "give a directory that peft saved a plain LoRA adapter in"
    try:
        return _Adapter.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"not an adapter that can be merged: {e}", where=str(path), mend=mend) from e


def _check(store: WeightStore, name: str, delta: _Delta, adapter: Path) -> None:
    shape: Any = (delta.left.shape[0], delta.right.shape[1])
    if name not in store.tensors or store.tensors[name].shape != shape:
        raise UsageError(
            f"it changes {name} {list(shape)}, which the checkpoint does not have", where=str(adapter / WEIGHTS),
            mend=f"merge it into the model that it was trained on, not {store.directory}",
        )  # fmt: skip
    if not (np.isfinite(delta.left).all() and np.isfinite(delta.right).all()):
        raise UsageError(f"the factors of {name} are not finite", where=str(adapter / WEIGHTS))
