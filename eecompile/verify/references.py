"""What the engines are held against: Hugging Face in float32, the numpy model, or the rows recorded at build."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.bundle.manifest import Manifest
from eecompile.errors import IntegrityError
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import Student
from eecompile.verify.loops import unroll_model
from eecompile.verify.rows import LOGIT_ROWS, ModelRows

RECORDED = "reference"  # folder in the bundle
RECORDED_LOGITS = 4  # the build records the logits of this many last rows


@dataclass(frozen=True)
class Reference:
    """A second opinion: `name` for the report, and the rows of any token ids, given a source where there is one."""

    name: str
    run: Callable[[Sequence[int], Sequence[int] | None], ModelRows]


def checkpoint_reference(student: Student, at: Sequence[int]) -> Reference:
    """Hugging Face in float32 where torch and transformers are installed; otherwise the numpy model on these weights.

    at: the layers whose output is wanted, as they run. Hugging Face has no cyclic gates, so that a student with some is
    held against the numpy model.
    """
    if student.cycles:
        return numpy_reference("numpy float32 on the checkpoint (cyclic gates)", student.reference, at)
    try:
        import torch
        import transformers
    except ImportError as e:
        run = numpy_reference("", student.reference, at).run
        return Reference(f"numpy float32 on the checkpoint ({e.name} is not installed)", run)
    kind = "Seq2SeqLM" if isinstance(student.spec, EncoderDecoderSpec) else "CausalLM"
    model = (
        getattr(transformers, f"AutoModelFor{kind}")
        .from_pretrained(
            str(student.path), dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            use_safetensors=True,
        )
        .eval()
    )  # fmt: skip
    unroll_model(model, student)
    name = f"hugging face float32 (transformers {transformers.__version__}, torch {torch.__version__})"
    return Reference(name, lambda ids, source: _hugging_face_rows(model, ids, source, at))


def numpy_reference(name: str, model: Callable[[Sequence[int] | None], ReferenceModel], at: Sequence[int]) -> Reference:
    """The numpy model of student/reference.py; `model` makes it, given a source where there is one."""

    def run(ids: Sequence[int], source: Sequence[int] | None) -> ModelRows:
        hidden, finished, logits = model(source).run(ids, at)
        return ModelRows(hidden, finished, logits[-LOGIT_ROWS:])

    return Reference(name, run)


def read_recorded(root: Path, manifest: Manifest) -> tuple[list[int], list[int] | None, ModelRows]:
    """The token ids, their source where the model has one, and the rows that the numpy model gave at build.

    Raises IntegrityError where they do not fit.
    """
    model = manifest.model
    ids = _ids(root, "token_ids", model.vocab, min(model.context, manifest.prefill_rows))
    source = None if manifest.source is None else _ids(root, "source_ids", model.vocab, manifest.source.context)
    rows = (len(ids), model.hidden)
    hidden = {e.layer: recorded_array(root, f"hidden_{e.layer}", np.float32, rows) for e in manifest.exits}
    finished = recorded_array(root, "finished", np.float32, rows)
    logits = recorded_array(root, "logits", np.float32, (min(RECORDED_LOGITS, len(ids)), model.vocab))
    return ids, source, ModelRows(hidden, finished, logits)


def _hugging_face_rows(model: Any, ids: Sequence[int], source: Sequence[int] | None, at: Sequence[int]) -> ModelRows:
    import torch

    tokens = torch.tensor([list(ids)])
    how: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
    with torch.no_grad():
        if source is None:
            out = model(tokens, logits_to_keep=LOGIT_ROWS, **how)
            states = out.hidden_states  # after 0, 1, .. layers; the last one is normalised
        else:
            out = model(torch.tensor([list(source)]), decoder_input_ids=tokens, **how)
            states = out.decoder_hidden_states
    hidden = {n: states[n][0].numpy() for n in at}
    return ModelRows(hidden, states[-1][0].numpy(), out.logits[0, -LOGIT_ROWS:].numpy())


def _ids(root: Path, name: str, vocab: int, most: int) -> list[int]:
    ids = recorded_array(root, name, np.int64, (-1,))
    if not len(ids) or ids.min() < 0 or ids.max() >= vocab or len(ids) > most:
        raise IntegrityError("no token ids of this model", where=_where(name), mend="build the bundle again")
    found: list[int] = ids.tolist()
    return found


def recorded_array(root: Path, name: str, dtype: type, shape: tuple[int, ...]) -> Any:
    """One recorded array; memory-mapped first, since numpy would believe any shape that a header claims."""
    try:
        array = np.load(root / RECORDED / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except Exception as e:  # numpy's header parser lets out whatever Python's tokenizer raises
        raise IntegrityError(f"not readable: {e}", where=_where(name), mend="build the bundle again") from e
    wanted = tuple(a if w == -1 else w for a, w in zip(array.shape, shape, strict=False))
    if array.dtype != dtype or array.ndim != len(shape) or array.shape != wanted:
        what = f"{array.dtype.name} {list(array.shape)} does not fit the manifest"
        raise IntegrityError(what, where=_where(name), mend="build the bundle again")
    return np.array(array)


def _where(name: str) -> str:
    return f"{RECORDED}/{name}.npy"
