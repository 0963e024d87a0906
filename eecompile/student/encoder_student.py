"""An encoder student: a checkpoint with a classifier, its exits, and its tokenizer if it has one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import Criterion
from eecompile.student.encoder import EncoderSpec
from eecompile.student.exits import (
    EarlyExit,
    ExitSpec,
    StudentExits,
    check_exits,
    check_plain,
    check_task,
    declared_exits,
    load_exits,
)
from eecompile.student.families import ENCODERS, encoder_from_config
from eecompile.student.store import WeightStore
from eecompile.student.student import Student, check_tokenizer, open_student, read_config, tokenizer_files


@dataclass(frozen=True)
class EncoderStudent:
    """What a build of a classifier starts from. Weights stay on disk."""

    path: Path
    spec: EncoderSpec
    store: WeightStore
    exits: StudentExits

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that are there; empty where the checkpoint runs on ids alone."""
        return tokenizer_files(self.path)


def is_encoder(path: Path) -> bool:
    """Whether the checkpoint is of an encoder's family."""
    return str(read_config(path).get("model_type")) in ENCODERS


def open_checkpoint(path: Path, at: Sequence[int] = ()) -> Student | EncoderStudent:
    """Open a Hugging Face directory, whatever it is of; `at` declares exits. Raises as the two that it calls."""
    return open_encoder(path, at) if is_encoder(path) else open_student(path, at)


def open_encoder(path: Path, at: Sequence[int] = ()) -> EncoderStudent:
    """Open an encoder with a classifier; `at` declares exits after those layers in place of early_exit.json's.

    Declared exits use the model's own pooler and classifier, and leave at max_prob (a regression: at delta).
    Raises UsageError for a checkpoint without classifier, a config or weights that do not fit, and impossible exits.
    """
    spec = encoder_from_config(read_config(path))
    store = WeightStore.open(path)
    store.require(spec.shapes())
    exits = _declared(at, spec) if at else load_exits(path)
    check_plain(exits)
    check_exits(exits, spec.layers, spec.hidden, spec.vocab)
    _check_classifiers(exits, spec)
    student = EncoderStudent(path, spec, store, exits)
    check_tokenizer(student.tokenizer_files, spec.vocab)
    return student


def _declared(at: Sequence[int], spec: EncoderSpec) -> StudentExits:
    """Nothing drafts in an encoder."""
    found = declared_exits(at).schema
    gate: Criterion = "delta" if spec.task == "regression" else "max_prob"
    exits = [ExitSpec(layer=e.layer, gates=[gate]) for e in found.exits]
    return StudentExits(EarlyExit(exits=exits, provenance=found.provenance))


def _check_classifiers(exits: StudentExits, spec: EncoderSpec) -> None:
    """The gates have to suit the task, and an exit's own pooler and classifier the model's sizes."""
    check_task(exits, spec.task)
    shapes: dict[str, tuple[int, ...]] = {}
    for e in exits.schema.exits:
        if e.draft is not None:
            raise UsageError(f"exit {e.layer} drafts, and an encoder has nothing to draft", where=c.EARLY_EXIT)
        if e.adapter == "classifier":
            if spec.pooler is None and exits.has(e.layer, "pooler.weight"):
                raise UsageError(f"exit {e.layer} has a pooler, and the model has none", where=c.EARLY_EXIT_WEIGHTS)
            shapes |= {f"exit.{e.layer}.{p}": shape for p, shape in _own(spec, exits.has(e.layer, "pooler.weight"))}
    if shapes and exits.store is None:
        raise UsageError("the exits have classifiers but no weights", where=c.EARLY_EXIT)
    if exits.store is not None:
        exits.store.require(shapes)
        bad = [name for name in shapes if not np.isfinite(exits.store.read(name)).all()]
        if bad:
            raise UsageError(f"{bad[0]} is not finite", where=c.EARLY_EXIT_WEIGHTS, mend="train the exits again")


def _own(spec: EncoderSpec, pooled: bool) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The tensors of an exit that has a classifier of its own, and a pooler before it where there is one: [in, out]."""
    d, labels = spec.hidden, len(spec.labels)
    pooler = {"pooler.weight": (d, d), "pooler.bias": (d,)} if pooled else {}
    return {**pooler, "classifier.weight": (d, labels), "classifier.bias": (labels,)}.items()
