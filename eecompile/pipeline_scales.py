"""What products of 8-bit numbers are scaled by: how large their inputs become over some texts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eecompile.calibrate.documents import SHARES, load_documents
from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec
from eecompile.student.activations import largest_inputs
from eecompile.student.encoder_student import EncoderStudent
from eecompile.student.student import Student

Samples = tuple[tuple[int, ...], ...]
MOST_SAMPLES = 8
NEEDED = "how large the inputs of its products become over texts"


def read_samples(student: Student | EncoderStudent, path: Path) -> Samples:
    """Token ids of up to 8 documents at `path`, chosen by their hash and cut off at 128 tokens.

    path: as `exits --fit` takes it. Raises UsageError where there is nothing to read or nothing long enough.
    """
    documents = load_documents(path, limit=MOST_SAMPLES)
    codec = TextCodec(student.path) if student.tokenizer_files else None
    context = student.spec.max_positions
    stream = documents.stream(codec, vocab=student.spec.vocab, context=context, splits=SHARES)
    found = tuple(tuple(document.ids) for document in stream)
    if not found:
        raise UsageError("no document is of 8 tokens or more", where=str(path), mend="give longer texts")
    return found


def product_scales(
    student: Student, precision: str, samples: Sequence[Sequence[int]], progress: Callable[[str], None]
) -> dict[str, NDArray[np.float32]]:
    """The largest inputs [in] of products, by weight, for a precision that scales them.

    Raises UsageError where there are no samples, or where the model's own numbers are not finite.
    """
    if not samples:
        raise UsageError(f"{precision} is scaled by {NEEDED}, and there are none", mend="name some with --texts")
    progress("activations")
    found = largest_inputs(student, samples)
    wrong = [name for name, sizes in found.items() if not np.isfinite(sizes).all()]
    if wrong:
        what = f"the inputs of {wrong[0]} are not finite"
        raise UsageError(what, where=str(student.path), mend="mend the checkpoint")
    return found
