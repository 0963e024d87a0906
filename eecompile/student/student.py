"""A student: a checkpoint in Hugging Face form, its exits, and its tokenizer if it has one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.cycles import Cycle, check_cycles, read_cycles
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.encoder_decoder_reference import reference_model
from eecompile.student.exits import StudentExits, check_exits, check_plain, check_task, declared_exits, load_exits
from eecompile.student.families import spec_from_config
from eecompile.student.loops import Loops, check_loops
from eecompile.student.model import DecoderSpec
from eecompile.student.modules import check_modules
from eecompile.student.reference import ReferenceModel
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
    """What a build starts from. Weights stay on disk.

    spec, store: the model as it runs, a recursive one unrolled. own_spec, own_store: the checkpoint, where a layer that
    runs several times is one layer.
    """

    path: Path
    spec: DecoderSpec
    store: WeightStore
    exits: StudentExits
    own_spec: DecoderSpec
    own_store: WeightStore

    @property
    def loops(self) -> Loops | None:
        """How layers repeat, if they do."""
        return self.exits.schema.schedule

    def reference(self, source: Sequence[int] | None = None) -> ReferenceModel:
        """The model in numpy, on the checkpoint's weights. source: an encoder-decoder's."""
        return reference_model(self.spec, self.store, source, self.cycles)

    @property
    def cycles(self) -> list[Cycle]:
        """The gates that have blocks run again."""
        return read_cycles(self.exits.schema.cycles, self.exits.store)

    def at_context(self, context: int) -> "Student":
        """The student as a build for `context` positions has it."""
        return replace(self, spec=self.spec.at_context(context), own_spec=self.own_spec.at_context(context))

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that are there; empty where the checkpoint runs on ids alone."""
        return tokenizer_files(self.path)


def open_student(path: Path, at: Sequence[int] = ()) -> Student:
    """Open a Hugging Face directory; `at` declares exits after those layers in place of early_exit.json's.

    Raises UsageError for an unsupported family, a config or weights that do not fit, and impossible exits.
    """
    config = read_config(path)
    own = spec_from_config(config)
    own_store = WeightStore.open(path).with_prefix(own.prefix, own.names.embed)
    if isinstance(own, EncoderDecoderSpec) and own.names.head in own_store.tensors:
        own = own.with_own_head()  # whatever the config says of tied embeddings
    own_store.require(own.tensors())
    own_store = own_store.with_views(own.views())
    exits = load_exits(path)
    exits = declared_exits(at, exits) if at else exits
    if isinstance(own, EncoderDecoderSpec):
        check_plain(exits)
    spec, store, loops = own, own_store, exits.schema.schedule
    if loops is not None:
        check_loops(loops, own, exits.store)
        spec, store = loops.unrolled(own), loops.unrolled_store(own, own_store, loops.factors(own, exits.store))
    check_exits(exits, spec.layers, spec.hidden, spec.vocab)
    check_task(exits, c.CAUSAL_LM)
    check_modules(exits, spec)
    check_cycles(exits.schema.cycles, exits.store, [e.depth for e in exits.schema.exits], spec.layers, spec.hidden)
    if loops is not None and exits.schema.cycles:
        raise UsageError("a schedule of loops and cyclic gates do not go together", where=str(path))
    student = Student(path, spec, store, exits, own, own_store)
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
