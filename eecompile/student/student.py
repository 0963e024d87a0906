"""A student: a checkpoint in Hugging Face form, its exits, and its tokenizer if it has one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.exits import StudentExits, check_exits, check_task, declared_exits, load_exits
from eecompile.student.families import spec_from_config
from eecompile.student.model import DecoderSpec
from eecompile.student.store import WeightStore

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Student:
    """What a build starts from. Weights stay on disk."""

    path: Path
    spec: DecoderSpec
    store: WeightStore
    exits: StudentExits

    def at_context(self, context: int) -> "Student":
        """The student as a build for `context` positions has it."""
        return replace(self, spec=self.spec.at_context(context))

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that are there; empty where the checkpoint runs on ids alone."""
        return tokenizer_files(self.path)


def open_student(path: Path, at: Sequence[int] = ()) -> Student:
    """Open a Hugging Face directory; `at` declares exits after those layers in place of early_exit.json's.

    Raises UsageError for an unsupported family, a config or weights that do not fit, and impossible exits.
    """
    config = read_config(path)
    spec = spec_from_config(config)
    store = WeightStore.open(path).with_prefix(spec.prefix, spec.names.embed)
    if isinstance(spec, EncoderDecoderSpec) and spec.names.head in store.tensors:
        spec = spec.with_own_head()  # whatever the config says of tied embeddings
    store.require(spec.tensors())
    store = store.with_views(spec.views())
    exits = declared_exits(at) if at else load_exits(path)
    check_exits(exits, spec.layers, spec.hidden, spec.vocab)
    check_task(exits, c.CAUSAL_LM)
    student = Student(path, spec, store, exits)
    check_tokenizer(student.tokenizer_files, spec.vocab)
    return student


def read_config(path: Path) -> dict[str, Any]:
    """config.json with the generation config's stop and start tokens, which are the ones that count when generating."""
    config = _read_json(path / "config.json")
    if (path / "generation_config.json").exists():
        generation = _read_json(path / "generation_config.json")
        for key in ("eos_token_id", "decoder_start_token_id"):
            if generation.get(key) is not None:
                config[key] = generation[key]
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UsageError(
            f"no {path.name} here", where=str(path.parent), mend="give a Hugging Face model directory or a .gguf file"
        ) from e
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"not readable: {e}", where=str(path)) from e
    if not isinstance(value, dict):
        raise UsageError("not a JSON object", where=str(path))
    return value


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files in a checkpoint's directory; empty without a tokenizer.json."""
    if not (path / "tokenizer.json").exists():
        return []
    return [path / name for name in TOKENIZER_FILES if (path / name).exists()]


def check_tokenizer(files: Sequence[Path], vocab: int) -> None:
    """Its files have to be readable. It may know fewer ids than the model (padded embeddings), never more."""
    if not files:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(files[0]))
    except Exception as e:  # tokenizers raises plain Exception
        raise UsageError(f"not a readable tokenizer: {e}", where=str(files[0])) from e
    for file in files[1:]:
        if file.suffix == ".json":
            _read_json(file)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab:
        raise UsageError(
            f"the tokenizer has ids up to {highest}, the model only {vocab} embeddings",
            where=str(files[0]),
            mend="put the tokenizer that belongs to this checkpoint beside it",
        )
